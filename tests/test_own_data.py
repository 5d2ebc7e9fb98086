"""Problems of one's own: every form of file gives the same ones; columns, system prompt, template and held-out file."""

import csv
import json
import warnings

import datasets
import pandas as pd
import pytest

from steer_core.common.errors import SteerError
from steer_core.common.records import read_records
from steer_core.config.config import load_config
from steer_core.config.tasks import MathsConfig, OwnConfig
from steer_core.policy.model import load_tokenizer
from steer_core.policy.tokenizer import character_tokenizer
from steer_core.problems import Maths, Own
from steer_core.problems.countdown import CHARACTERS
from steer_core.runs.folder import RunFolder, absolute_paths

TOKENIZER = character_tokenizer(CHARACTERS)
ROWS = [{"question": f"{i}+{i}=", "answer": str(2 * i), "level": str(i % 3)} for i in range(60)]


def put(path, rows):
    """The rows in a file or a folder, by the end of its name."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return str(path)


def maths(file, tokenizer=TOKENIZER, **settings):
    return Maths(MathsConfig(file=str(file), **settings), tokenizer)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.jsonl", "rows"])
def test_every_form_gives_the_same_problems_and_rows(name, tmp_path):
    file = put(tmp_path / name, ROWS)
    task = Own(OwnConfig(file=file, reward="m:f"), TOKENIZER)
    assert [(p.prompt, p.reference, p.row) for p in task.fitting] == [(r["question"], r["answer"], r) for r in ROWS]
    assert [(p.prompt, p.reference, p.row) for p in maths(file).fitting] == [
        (r["question"], r["answer"], {}) for r in ROWS
    ]


def test_columns_are_those_that_are_named(tmp_path):
    rows = [{"q": f"{i}+1=", "key": {"value": i + 1}, "question": "not this", "answer": "nor this"} for i in range(9)]
    task = maths(put(tmp_path / "a.jsonl", rows), question="q", answer="key.value")
    assert [(p.prompt, p.reference) for p in task.fitting] == [(f"{i}+1=", str(i + 1)) for i in range(9)]


def test_an_answer_of_0_is_an_answer_and_a_reward_model_may_be_any_text(tmp_path):
    rows = [{"q": "1-1=", "answer": 0, "solution": "no", "reward_model": "none"}]
    task = maths(put(tmp_path / "a.jsonl", rows), question="q")
    assert [(p.prompt, p.reference) for p in task.fitting] == [("1-1=", "0")]


def test_held_out_problems_are_rewarded_by_their_own_files_rows(tmp_path):
    train = put(tmp_path / "a.jsonl", [{"question": f"{i}+1=", "level": "train"} for i in range(9)])
    held_out = put(tmp_path / "b.jsonl", [{"question": "3+1=", "level": "held out"}])
    with pytest.warns(UserWarning, match="left out 1 of 9"):
        task = Own(OwnConfig(file=train, validation_file=held_out, reward="m:f"), TOKENIZER)
    assert [p.row["level"] for p in task.fitting_held_out] == ["held out"]
    assert {p.row["level"] for p in task.fitting} == {"train"}


def test_a_long_value_of_a_csv_file_is_read(tmp_path):
    put(tmp_path / "a.csv", [{"question": "1+1=", "answer": "2", "tests": "x" * 200_000}])
    assert len(read_records(tmp_path / "a.csv", "task.file")[0]["tests"]) == 200_000


def test_chat_messages_of_a_named_column_stay_messages(tmp_path):
    said = [{"role": "system", "content": "1"}, {"role": "user", "content": "1+1="}]
    task = maths(put(tmp_path / "a.jsonl", [{"chat": said, "answer": "2"}]), question="chat")
    assert task.fitting[0].messages == said


def test_an_own_reward_needs_no_answer_and_keeps_rows_with_different_ones(tmp_path):
    rows = [{"prompt": "1+1=", "level": 1}, {"prompt": "1+1=", "level": 2}, {"prompt": "2+1=", "level": 3}]
    task = Own(OwnConfig(file=put(tmp_path / "a.jsonl", rows), reward="m:f"), TOKENIZER)
    assert [(p.prompt, p.reference, p.row["level"]) for p in task.fitting] == [("1+1=", "", 1), ("2+1=", "", 3)]


def test_an_own_reward_reads_verls_format_too(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "1+1="}], "reward_model": {"ground_truth": "2"}, "extra": 5}]
    file = put(tmp_path / "a.parquet", rows)
    for task in (Own(OwnConfig(file=file, reward="m:f"), TOKENIZER), maths(file, reward="m:f")):
        (problem,) = task.fitting
        assert (problem.prompt, problem.reference, problem.row["extra"]) == ("1+1=", "2", 5)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_validation_file_holds_out_its_problems_and_leaves_the_whole_file_for_training(split, tmp_path):
    train, held_out = put(tmp_path / "a.csv", ROWS), put(tmp_path / "b.jsonl", ROWS[50:])
    with pytest.warns(UserWarning, match="left out 10 of 60 problems, which the validation file holds too"):
        task = maths(train, validation_file=held_out)
    assert [p.id for p in task.problems("train", 50)] == [r["question"] for r in ROWS[:50]]
    assert [p.id for p in task.problems(split, 10)] == [r["question"] for r in ROWS[50:]]
    with pytest.raises(SteerError, match=r"task.validation_file: .*b.jsonl holds 10 distinct .* where 11 are asked"):
        task.problems(split, 11)
    with pytest.raises(SteerError, match=r"task\.validation_file: holds every problem of task.file; name another"):
        maths(train, validation_file=train)


def test_without_a_validation_file_splits_go_by_the_hash_as_ever(tmp_path):
    task = maths(put(tmp_path / "a.csv", ROWS))
    train = {p.id for p in task.problems("train", 30)}
    assert not train & {p.id for p in task.problems("test", 2)}


def test_a_system_prompt_takes_the_place_of_the_files_and_changes_no_split(tmp_path):
    said = [{"role": "system", "content": "old"}, {"role": "user", "content": "1+1="}]
    file, tokenizer = put(tmp_path / "a.jsonl", [{"prompt": said, "answer": "2"}]), load_tokenizer("smoke")
    before, after = maths(file, tokenizer).fitting[0], maths(file, tokenizer, system="new").fitting[0]
    assert before.id == after.id
    assert after.prompt == before.prompt.replace("old", "new")
    plain = put(tmp_path / "b.jsonl", [{"prompt": "1+1=", "answer": "2"}])
    assert maths(plain, tokenizer, system="new").fitting[0].prompt.startswith("<|im_start|>system\nnew<|im_end|>\n")


def test_arguments_reach_the_chat_template(tmp_path):
    tokenizer = load_tokenizer("smoke")
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if thinking is defined and not thinking %} now{% endif %}"
    file = put(tmp_path / "a.jsonl", [{"prompt": "1+1=", "answer": "2"}])
    assert maths(file, tokenizer).fitting[0].prompt == "1+1="
    assert maths(file, tokenizer, template={"thinking": True}).fitting[0].prompt == "1+1="
    assert maths(file, tokenizer, template={"thinking": False}).fitting[0].prompt == "1+1= now"
    assert load_config(
        None, ["task.name=maths", "task.file=a", "task.template.enable_thinking=false"]
    ).task.template == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": {"tokenize": True}}, "task.template.tokenize: is no argument of a template's own"),
        ({"question": "q"}, "row 1 has the columns question, answer, level, not q; name one that is there"),
        ({"answer": "a.b"}, "row 1 has the columns question, answer, level, not a.b; name one that is there"),
        ({"validation_file": "none.csv"}, "task.validation_file: none.csv is no file"),
    ],
)
def test_settings_that_do_not_fit_the_file_are_told(settings, message, tmp_path):
    with pytest.raises(SteerError, match=message) as caught:
        maths(put(tmp_path / "a.csv", ROWS), load_tokenizer("smoke"), **settings).problems("train", 1)
    assert "\n" not in str(caught.value)


def test_arguments_without_a_template_are_refused(tmp_path):
    with pytest.raises(SteerError, match=r"task\.template: the model has no chat template that takes thinking"):
        _ = maths(put(tmp_path / "a.csv", ROWS), template={"thinking": True}).fitting


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "question,answer\n1,2\n3", "line 3 has 1 values where the header names 2"),
        ("a.csv", 'question,answer\n"1,2', "is not read (unexpected end of data)"),
        ("a.csv", "answer,answer\n1,2", "its header names a column twice"),
        ("a.csv", "question,answer\n", "a.csv holds no record"),
        ("a.csv", "", "a.csv holds no record"),
        ("a.csv", "question,answer\n,2", "row 1: its question is empty"),
        ("a.txt", "x", "a.txt is none of .parquet, .jsonl, .json, .csv"),
        ("folder/x", "x", "folder is no data set that save_to_disk wrote ("),
    ],
)
def test_a_file_that_does_not_fit_is_told_in_one_line(name, content, message, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    with pytest.raises(SteerError) as caught:
        maths(file if file.parent == tmp_path else file.parent)
    assert message in str(caught.value)
    assert str(caught.value).startswith("task.file: ")
    assert "\n" not in str(caught.value)


def test_of_several_splits_one_has_to_be_named(tmp_path):
    datasets.disable_progress_bars()
    both = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")})
    both.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(SteerError, match=r"both holds several splits; name one of them: .*both/test, .*both/train"):
        maths(tmp_path / "both")
    assert len(maths(tmp_path / "both" / "train").fitting) == 60


def test_csv_values_are_text_with_quotes_and_lines_and_a_mark_of_byte_order(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufeffa,b\r\n"x, ""y""\nz",007\r\n\r\n'.encode())
    assert read_records(tmp_path / "a.csv", "f") == [{"a": 'x, "y"\nz', "b": "007"}]


def test_a_run_keeps_the_absolute_path_of_its_validation_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.csv", ROWS), put(tmp_path / "b.csv", ROWS)
    config = load_config(None, ["task.name=maths", "task.file=a.csv", "task.validation_file=b.csv"])
    kept = {"task.file": str(tmp_path / "a.csv"), "task.validation_file": str(tmp_path / "b.csv")}
    assert absolute_paths(config) == kept
    run = RunFolder(tmp_path / "run", config).start()
    monkeypatch.chdir("/")
    opened = RunFolder.open(run.path).config.task
    assert {"task.file": opened.file, "task.validation_file": opened.validation_file} == kept


def test_verls_parquet_is_read_as_ever_and_nothing_is_warned(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "1+1="}], "reward_model": {"ground_truth": " 2 "}, "other": 3}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (problem,) = maths(put(tmp_path / "a.parquet", rows)).fitting
    assert (problem.prompt, problem.reference, problem.row) == ("1+1=", "2", {})
