"""Data sets by name: where they are found, what is checked at load, what a problem's identity is."""

import os
import warnings
from dataclasses import replace

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problem_files import released, row, user, write
from pyarrow import parquet

from steer_core.common.errors import SteerError
from steer_core.problems import sets
from steer_core.problems.prompts import STYLES
from steer_core.problems.rows import read_rows
from steer_core.problems.sets import ProblemSet, load_set, names

RELEASED = {
    "aime24": (960, 30, 30),
    "aime25": (960, 30, 30),
    "amc23": (1280, 40, 40),
    "math500": (500, 500, 500),
    "minerva": (272, 272, 272),
    "olympiadbench": (675, 675, 675),
    "gsm8k": (1319, 1319, 1319),
    "omni": (4428, 4406, 4396),
    "dapo-math-17k": (17398, 17188, 17183),
}
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.fixture
def facts(monkeypatch):
    """Puts other facts about a set into the manifest."""

    def put(name="aime24", **changes):
        manifest = {**sets.manifest(), name: replace(sets.facts_of(name), **changes)}
        monkeypatch.setattr(sets, "manifest", lambda: manifest)

    return put


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_file_is_verified_and_its_problems_are_counted_once(name, recwarn):
    folder = released(name)
    rows, problems, usable = RELEASED[name]
    found = load_set(name)
    release = sets.read_release(name, folder)
    assert (len(release.rows), len(found.problems)) == (rows, usable)
    assert len({problem.id for problem in found.problems}) == usable
    facts = sets.facts_of(name)
    assert (facts.rows, facts.problems, facts.content) == (rows, problems, found.digest)
    assert found.source == facts.file
    assert release.state == "verified"
    told = [str(warning.message) for warning in recwarn if "data " in str(warning.message)]
    assert len(told) == (usable < problems)
    assert all(f"left out {problems - usable} of {problems} problems" in text for text in told)


def test_the_papers_samples_and_uses():
    samples = {name: sets.facts_of(name).samples for name in names()}
    assert samples == {
        **dict.fromkeys(names(), 1),
        **dict.fromkeys(("aime24", "aime25", "amc23"), 32),
        "livecodebench-v5": 4,
    }
    assert [name for name in names() if sets.facts_of(name).use == "training"] == ["dapo-math-17k", "archercoder"]
    assert [name for name in names() if sets.facts_of(name).grader == "code"] == ["archercoder", "livecodebench-v5"]


@given(TEXT, st.lists(st.sampled_from([" ", "\n", "\t", "\u00a0", "\u3000"]), min_size=1, max_size=4))
def test_white_space_does_not_make_another_problem(question, spaces):
    blank = "".join(spaces)
    spread = blank + blank.join(question.split()) + blank
    assert sets.identity(spread) == sets.identity(question) == sets.identity(sets.identity(question))


def test_canonical_forms_are_one_problem_and_letter_case_and_superscripts_are_not():
    assert sets.identity("caf\u00e9") == sets.identity("cafe\u0301")
    assert sets.identity("find N") != sets.identity("find n")
    assert sets.identity("5²") != sets.identity("52")


def test_a_problems_id_is_its_own_and_does_not_depend_on_the_files_order(tmp_path, facts):
    facts(sha256=None)
    rows = [row(f"problem {i}") for i in range(50)]
    with pytest.warns(UserWarning, match="not verified"):
        one = load_set("aime24", write(tmp_path / "d", rows)).problems
    with pytest.warns(UserWarning, match="not verified"):
        other = load_set("aime24", write(tmp_path / "d", rows[::-1])).problems
    assert [problem.id for problem in one] == [problem.id for problem in other][::-1]
    assert len({problem.id for problem in one}) == 50
    assert one[0].id == sets.problem_id("aime24", "problem 0")


def test_rows_are_grouped_by_the_bare_question_and_not_by_the_words_around_it(tmp_path, facts):
    asked = [STYLES[style].messages("1+1 = ?")[0]["content"] for style in ("boxed", "answer-line", "bare")]
    folder = write(tmp_path / "d", [*map(row, asked), row(" 1+1\n= ?"), row("1+2 = ?", " 3 ")])
    facts(sha256=None)
    with pytest.warns(UserWarning, match="no hash in the manifest; its content is not verified"):
        found = load_set("aime24", folder)
    assert isinstance(found, ProblemSet)
    assert [(p.question, p.reference, p.messages) for p in found.problems] == [
        ("1+1 = ?", "2", user(asked[0])),
        ("1+2 = ?", "3", user("1+2 = ?")),
    ]


def test_problems_without_one_answer_are_left_out_with_a_warning(tmp_path, facts):
    rows = [row("a", "1"), row("b", ""), row("c", "1"), row("c", "2"), row("d", "4"), row("d", " 4")]
    folder = write(tmp_path / "d", rows)
    facts(content=sets.content_hash(read_rows(folder / "aime24.parquet")))
    with pytest.warns(UserWarning, match=r"data aime24: aime24.parquet: left out 2 of 4 problems"):
        found = load_set("aime24", folder)
    assert [problem.question for problem in found.problems] == ["a", "d"]


def test_a_changed_file_is_refused_with_what_was_expected_and_the_remedy_unless_it_is_accepted(tmp_path, facts):
    folder = write(tmp_path / "d", [row("1+1 = ?"), row("1+2 = ?", "3")])
    rows = read_rows(folder / "aime24.parquet")
    facts(sha256="0" * 64, content="f" * 64, rows=3)
    with pytest.raises(SteerError) as caught:
        load_set("aime24", folder)
    message = str(caught.value)
    assert message.startswith(f"data aime24: {folder / 'aime24.parquet'} holds other content")
    for part in ("2 rows", sets.content_hash(rows)[:12], "3 rows, ffffffffffff are expected", "--accept-changed"):
        assert part in message
    with pytest.warns(UserWarning, match="aime24.parquet differs from the manifest; its content is not verified"):
        assert len(load_set("aime24", folder, accept_changed=True).problems) == 2


def test_a_file_with_the_same_rows_in_another_encoding_is_taken(tmp_path, facts):
    rows = [row("1+1 = ?"), row("1+2 = ?", "3")]
    folder = write(tmp_path / "d", rows)
    facts(sha256="0" * 64, content=sets.content_hash(read_rows(folder / "aime24.parquet")), rows=2)
    assert sets.read_release("aime24", folder).state == "other encoding"
    parquet.write_table(pa.Table.from_pylist(rows), folder / "aime24.parquet", compression="gzip", row_group_size=1)
    assert sets.read_release("aime24", folder).state == "other encoding"
    write(folder, rows[::-1])
    with pytest.raises(SteerError, match="holds other content"):
        load_set("aime24", folder)


def test_the_content_hash_sees_the_answers_the_roles_the_words_and_their_order():
    rows = [(user("a"), "1"), (user("b"), "2")]
    system = [{"role": "system", "content": "a"}]
    others = [rows[::-1], [rows[0]], [(user("a"), "2"), rows[1]], [(system, "1"), rows[1]], [(user("c"), "1"), rows[1]]]
    assert len({sets.content_hash(case) for case in (rows, *others)}) == 6
    assert sets.content_hash(rows) == sets.content_hash([(user("a"), "1"), (user("b"), "2")])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "1+1="}], "has the columns question; add prompt and reward_model"),
        ([{"prompt": user("a"), "answer": "2"}], "add reward_model"),
        ([{"prompt": [], "reward_model": {"ground_truth": "2"}}], "row 0: prompt .* is no list of chat messages"),
        ([row("a"), {"prompt": user("b"), "reward_model": None}], "row 1: reward_model 'None' has no text"),
        ([row("a", "")], "holds no problem with one answer among 1 rows"),
    ],
)
def test_a_file_that_does_not_fit_is_told_by_its_set(tmp_path, facts, rows, message):
    facts(sha256=None)
    folder = write(tmp_path / "d", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SteerError, match=message) as caught:
            load_set("aime24", folder)
    assert str(caught.value).startswith("data aime24: ")


def test_a_file_that_is_no_parquet_is_told(tmp_path):
    (tmp_path / "aime24.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(SteerError, match=r"data aime24: .*aime24.parquet is not read as parquet \(.+\); give"):
        load_set("aime24", tmp_path)


def test_an_unknown_set_is_told_with_the_nearest_name():
    with pytest.raises(SteerError, match="data: 'aime-24' is unknown; did you mean 'aime24'"):
        load_set("aime-24")


def test_a_folder_is_taken_from_the_argument_then_from_steer_data_then_from_beside_the_checkout(tmp_path, monkeypatch):
    for name in ("told", "set", "beside"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sets, "BESIDE", tmp_path / "beside")
    monkeypatch.setenv("STEER_DATA", str(tmp_path / "set"))
    assert sets.data_folder(tmp_path / "told") == tmp_path / "told"
    assert sets.data_folder() == tmp_path / "set"
    monkeypatch.delenv("STEER_DATA")
    assert sets.data_folder() == tmp_path / "beside"
    monkeypatch.setattr(sets, "BESIDE", tmp_path / "absent")
    assert sets.data_folder() is None


def test_a_folder_that_is_none_is_told_by_what_named_it(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_DATA", str(tmp_path / "none"))
    with pytest.raises(SteerError, match=r"STEER_DATA: .*none is no folder"):
        load_set("aime24")
    with pytest.raises(SteerError, match=r"--data: .*other is no folder"):
        load_set("aime24", tmp_path / "other")


def test_a_set_that_is_in_neither_place_is_told_with_both_ways_to_get_it(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(datasets.DownloadManager, "download", refuse)
    for name in ("aime24", "livecodebench-v5"):
        facts = sets.facts_of(name)
        with pytest.raises(SteerError) as caught:
            load_set(name, tmp_path)
        for part in (
            f"{facts.file} is not in {tmp_path}",
            facts.hub.id,
            "no route",
            "set STEER_DATA",
            "hub can be reached",
        ):
            assert part in str(caught.value)


def test_loading_writes_nothing_beside_the_data_nor_into_the_cache_of_datasets(tmp_path, facts, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    folder = write(tmp_path / "[odd] *folder", [row("1+1 = ?")])
    os.chmod(folder, 0o500)
    facts(sha256=None)
    with pytest.warns(UserWarning, match="not verified"):
        found = load_set("aime24", folder)
    assert found.problems[0].question == "1+1 = ?"
    assert [path.name for path in folder.iterdir()] == ["aime24.parquet"]
    assert list(cache.iterdir()) == []
    os.chmod(folder, 0o700)
