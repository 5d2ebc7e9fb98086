"""The audit: what it says of planted faults, which problems count as shared, and the released files' numbers."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from problem_files import released, row, write

from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.problems import audit, overlap
from steer_core.problems.prompts import CHINESE_TAILS, STYLES, WRAPPERS
from steer_core.problems.sets import facts_of, identity

COMMITTED = Path(__file__).parents[1] / "reproduce" / "results" / "data_audit.json"
LONG = "A farmer has {} hens and {} cows, which together have {} legs more than ducks in the pond behind the old mill."


def faulty(folder):
    """Two sets with every fault that the audit looks for, and two problems in common."""
    head, tail = WRAPPERS["Answer: (lost $Answer)"]
    shared = LONG.format(3, 4, 22)
    first = [
        *[row("How many?", "7", extra_info={"raw_problem": "How many?"})] * 3,
        row(head + "Half?" + tail, r"\frac{1}{2}", extra_info={"raw_problem": "step. Half?"}),
        row("Empty?", "", extra_info={"raw_problem": "Empty?"}),
        row("Which?", "1", extra_info={"raw_problem": "Which?"}),
        row("Which?", "-1", extra_info={"raw_problem": "Which?"}),
        row("Broken \x0crac{1}{2}?", "3", extra_info={"raw_problem": "Broken \x0crac{1}{2}?"}),
        row(shared, "5", extra_info={"raw_problem": shared}),
    ]
    second = [
        row(STYLES["boxed"].messages("How  many?")[0]["content"], "7"),
        row("什么" + CHINESE_TAILS[0], "8"),
        row(shared.replace("farmer has", "farmer owns").replace("3", "$3$"), "5"),
    ]
    return write(write(folder, first), second, "DAPO-Math-17k.parquet")


def run(*words):
    with pytest.raises(SystemExit) as exit:
        main(["data", *map(str, words)])
    return exit.value.code


@pytest.fixture
def page(tmp_path, capsys, monkeypatch):
    """(exit status of an audit of the faulty sets, its folder, what it printed)."""
    monkeypatch.setattr("sys.argv", ["steer", "data", "audit"])
    folder, out = faulty(tmp_path / "d"), tmp_path / "out"
    status = run("audit", "--data", folder, "--out", out, "--accept-changed")
    return status, out, capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:data ")
def test_every_planted_fault_is_counted(page):
    status, out, _ = page
    assert status == 0
    record = json.loads((out / "data_audit.json").read_text(encoding="utf-8"))
    first, second = record["sets"]
    assert (first["rows"], first["problems"], first["left_out"], first["state"]) == (9, 6, 2, "changed")
    assert first["copies"] == {"1": 4, "2": 1, "3": 1}
    assert first["forms"] == {"none": 8, "Answer: (lost $Answer)": 1}
    assert first["raw_problem"] == {"rows": 9, "differ": 1, "example": "step. Half?"}
    assert len(first["no_answer"]) == 1
    assert [case["answers"] for case in first["answers_differ"]] == [["-1", "1"]]
    assert (first["no_integer"], first["control_characters"]) == (2, 1)
    assert first["control_example"] == r"Broken \x0crac{1}{2}?"
    assert second["forms"] == {r"\boxed{Answer}": 1, r"Answer: \boxed{}, in Chinese": 1, "none": 1}
    assert second["raw_problem"]["rows"] == 0
    assert record["left_out"] == [name for name in audit.names() if name not in ("aime24", "dapo-math-17k")]
    assert record["environment"]["command"] == "steer data audit"


@pytest.mark.filterwarnings("ignore:data ")
def test_shared_problems_are_named_by_their_identities_and_quoted_side_by_side(page):
    record = json.loads((page[1] / "data_audit.json").read_text(encoding="utf-8"))
    pair = next(pair for pair in record["overlap"] if pair["first"] != pair["second"])
    assert pair["found"] == {"aime24": {"exact": 1, "near": 1}, "dapo-math-17k": {"exact": 1, "near": 1}}
    one = audit.problem_id("", identity("How many?"))[1:]
    assert pair["exact"] == [f"{one} {one}"]
    assert pair["near"][0].startswith(audit.problem_id("", identity(LONG.format(3, 4, 22)))[1:])
    texts = LONG.format(3, 4, 22), LONG.replace("has", "owns").format("$3$", 4, 22)
    assert pair["examples"][0]["texts"] == [audit.cut(text) for text in texts]


@pytest.mark.filterwarnings("ignore:data ")
def test_the_page_and_the_terminal_show_both_tables(page):
    _, out, printed = page
    text = (out / "data_audit.md").read_text(encoding="utf-8")
    for part in (
        "| aime24 (changed) | 9 | 6 | 1, 2, 3 |",
        "1 of 9",
        "| 1 + 1 |",
        "-1 / 1: Which?",
        overlap.RULE,
        overlap.READ,
    ):
        assert part in text
    for part in ("1 of 9", "changed", "1 + 1", "data_audit.md"):
        assert part in printed


def test_a_changed_file_stops_the_audit_unless_it_is_accepted(tmp_path, capsys):
    assert run("audit", "--data", faulty(tmp_path / "d"), "--out", tmp_path / "out") == 2
    assert "--accept-changed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["aime24", "aime24"], "aime24 is named twice"),
        (["aime-25"], "did you mean 'aime25'"),
        ([], "holds none of the sets; set STEER_DATA"),
        (["--data", "absent"], "--data: absent is no folder"),
    ],
)
def test_bad_words_are_told(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.setenv("STEER_DATA", str(tmp_path))
    assert run("audit", *words) == 2
    assert message in capsys.readouterr().err


def test_an_out_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SteerError, match=r"--out: .*cannot be written"):
        audit.write({}, tmp_path / "file" / "out")


def test_the_list_tells_where_each_set_would_come_from_and_the_styles(tmp_path, capsys):
    assert run("list", "--data", write(tmp_path / "d", [row("a")])) == 0
    printed = capsys.readouterr().out
    assert "aime24.parquet" in printed
    assert "hub: math-ai/aime25" in printed
    assert all(name in printed for name in (*audit.names(), *STYLES))


def pair_of(first, second):
    sets = {"one": [identity(text) for text in first], "two": [identity(text) for text in second]}
    return next(pair for pair in overlap.overlaps(sets) if pair.first != pair.second)


def test_another_layout_and_added_words_are_a_near_duplicate():
    text = r"Find all real numbers $x$ such that $\dfrac{x^2+1}{3} = \left(x - 1\right)$ and $x$ is above 2 or 5."
    other = r"Find all real numbers \(x\) such that \( \frac{x^2 + 1}{3} = (x-1) \) and \(x\) is above 2 or 5. Why?"
    assert [match[:2] for match in pair_of([text], [other]).near] == [(0, 0)]
    assert pair_of([text], [other]).exact == []


def test_other_numbers_short_texts_and_other_words_are_not():
    assert pair_of([LONG.format(3, 4, 22)], [LONG.format(3, 5, 22)]).near == []
    assert len(pair_of([LONG.format(3, 4, 22)], [LONG.format(3, 4, 22).replace("old", "new")]).near) == 1
    short = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert pair_of([short], [f"{short} again"]).near == []
    assert len(pair_of([f"{short} fourteen"], [f"{short} fourteen again"]).near) == 1


def test_a_phrase_that_many_problems_share_counts_for_nothing():
    phrase = "the answer is in the form of m over n where both are coprime so give the sum of m and n as an integer"
    few, many = ([f"word{i} {phrase}" for i in range(count)] for count in (overlap.COMMON - 1, overlap.COMMON))
    assert len(pair_of(["start " + phrase], few).near) == overlap.COMMON - 1
    assert pair_of(["start " + phrase], many).near == []


def test_equal_problems_are_exact_and_not_near_too():
    text = LONG.format(3, 4, 22)
    pair = pair_of([text, "other"], ["other", text.replace(" ", "\n"), text + " Why?"])
    assert sorted(pair.exact) == [(0, 1), (1, 0)]
    assert [match[:2] for match in pair.near] == [(0, 2)]
    assert pair.found("one") == ({0, 1}, set())
    assert pair.found("two") == ({0, 1}, {2})


def test_within_a_set_a_pair_is_counted_once_and_both_problems_are_found():
    texts = [LONG.format(3, 4, 22), "other", LONG.format(3, 4, 22) + " Why?"]
    (pair,) = overlap.overlaps({"one": texts})
    assert [match[:2] for match in pair.near] == [(0, 2)]
    assert pair.found("one") == (set(), {0, 2})


def alike(one, other):
    """The share by the definition, 0 where the pair does not count; for sets too small to have common phrases."""
    words = [overlap.tokens(text) for text in (one, other)]
    runs = [{tuple(said[i : i + 5]) for i in range(len(said) - 4)} for said in words]
    first, second = (Counter(word for word in said if word.isdigit()) for said in words)
    shorter = min(map(len, runs))
    counts = one != other and shorter >= overlap.LEAST and (first <= second or second <= first)
    return len(runs[0] & runs[1]) / shorter if counts else 0


NOISE = st.text("ab", min_size=15, max_size=40).flatmap(lambda text: st.sampled_from(["", "1", "12"]).map(text.__add__))


@given(st.lists(NOISE, min_size=2, max_size=8, unique=True))
def test_the_sparse_product_finds_what_the_definition_says(noises):
    texts = [" ".join(noise) for noise in noises]
    first, second = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    shares = {(i, j): alike(one, other) for i, one in enumerate(first) for j, other in enumerate(second)}
    expected = [(*key, share) for key, share in shares.items() if share >= overlap.SHARED]
    assert sorted(pair_of(first, second).near) == expected


def test_a_quotation_is_one_short_line_from_where_the_texts_differ():
    assert audit.cut("a\n b") == "a b"
    assert len(audit.cut("x" * 200)) == audit.QUOTED
    one, other = audit.differing("y" * 100 + "1" + "z" * 100, "y" * 100 + "2" + "z" * 100)
    assert "y1z" in one
    assert "y2z" in other
    assert max(len(one), len(other)) <= audit.QUOTED + 3
    assert [text[-4:] for text in audit.differing("y" * 100, "y" * 100 + " Why")] == ["yyyy", " Why"]


@pytest.fixture(scope="module")
def real():
    """The record of the released files, made once."""
    for name in ("aime24", "amc23", "math500", "minerva", "olympiadbench", "gsm8k", "omni", "aime25", "dapo-math-17k"):
        released(name)
    return audit.audit()


def test_the_released_files_are_as_the_reference_says(real):
    sets = {one["name"]: one for one in real["sets"]}
    assert {one["state"] for one in real["sets"]} == {"verified"}
    for name in ("aime24", "aime25", "amc23"):
        assert sets[name]["copies"] == {32: sets[name]["problems"]}
        assert list(sets[name]["forms"]) == ["Answer: $Answer"]
    cut = {name: one["raw_problem"]["differ"] for name, one in sets.items() if one["raw_problem"]["differ"]}
    assert cut == {"aime25": 960, "amc23": 1280}
    forms = {name: list(one["forms"]) for name, one in sets.items()}
    assert forms["gsm8k"] == forms["omni"] == ["Answer: (lost $Answer)"]
    assert forms["math500"] == forms["minerva"] == forms["olympiadbench"] == ["none"]
    assert sets["dapo-math-17k"]["forms"] == {r"\boxed{Answer}": 14116, r"Answer: \boxed{}, in Chinese": 3282}
    assert sets["dapo-math-17k"]["control_characters"] == 643
    assert [len(sets["omni"][key]) for key in ("no_answer", "answers_differ")] == [9, 1]


def test_the_training_set_holds_two_thirds_of_amc_2023_and_none_of_aime(real):
    pairs = [pair for pair in real["overlap"] if pair["second"] == "dapo-math-17k"]
    found = {pair["first"]: pair["found"][pair["first"]] for pair in pairs}
    assert found["amc23"] == {"exact": 5, "near": 21}
    for name in ("aime24", "aime25", "minerva", "gsm8k"):
        assert found[name] == {"exact": 0, "near": 0}


def test_the_committed_audit_is_what_the_command_finds(real):
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(real))
    assert all(committed[key] == now[key] for key in ("sets", "rule", "overlap", "left_out"))
    longest = max(len(text) for pair in committed["overlap"] for case in pair["examples"] for text in case["texts"])
    assert longest <= audit.QUOTED + 3
    assert facts_of("aime24").sha256 not in COMMITTED.with_suffix(".md").read_text(encoding="utf-8")
