"""`steer grade`: responses that this or another harness kept, judged again."""

import json

import pandas as pd
import pytest
from sandboxes import needs_bubblewrap

from steer_core.cli.main import main
from steer_core.evaluation import tables
from steer_core.problems.own import load_own

BOX = r"so \boxed{%s}"
FILES = {
    "kept here": [
        {"benchmark": "aime24", "problem": f"aime24/{i}", "sample": s, "prompt": "p", "reference": "7", "tokens": 5,
         "response": BOX % (7 if s else i), "finish_reason": "stop", "strict/status": "wrong"}
        for i in (7, 8) for s in (0, 1)
    ],
    "verl generations": [
        {"data_source": "aime24", "prompt": [{"role": "user", "content": f"question {i}"}],
         "reward_model": {"ground_truth": "7", "style": "rule"}, "responses": [BOX % i, BOX % 7]}
        for i in (7, 8)
    ],
    "verl validation": [
        {"input": f"question {i}", "output": BOX % (7 if s else i), "gts": "7", "score": 0.0, "step": 3}
        for i in (7, 8) for s in (0, 1)
    ],
    "lm-evaluation-harness": [
        {"doc_id": i, "doc": {"question": f"question {i}", "answer": "so\n#### 7"}, "target": "so\n#### 7",
         "arguments": {"gen_args_0": {"arg_0": "p"}}, "resps": [[BOX % i, BOX % 7]], "filtered_resps": ["7"],
         "filter": name, "exact_match": 0.0}
        for name in ("strict-match", "flexible-extract") for i in (7, 8)
    ],
    "chat completions": [
        {"id": f"q{i}", "answer": 7,
         "choices": [{"message": {"role": "assistant", "content": BOX % n}, "finish_reason": "stop"} for n in (i, 7)]}
        for i in (7, 8)
    ],
    "OpenAI's batches": [
        {"custom_id": f"q{i}", "answer": "7", "tokens": "other", "finish_reason": 3, "sample": "other",
         "response": {"body": {"choices": [{"message": {"content": BOX % n}} for n in (i, 7)]}}}
        for i in (7, 8)
    ],
    "conversations": [
        {"problem": f"question {i}", "answer": "7", "messages": [
            {"role": "user", "content": [{"type": "text", "text": f"question {i}"}]},
            {"role": "assistant", "content": [{"type": "text", "text": BOX % (7 if s else i)}]}]}
        for i in (7, 8) for s in (0, 1)
    ],
    "Qwen's evaluation": [
        {"idx": i, "question": f"question {i}", "gt": "7", "code": [BOX % i, BOX % 7], "pred": ["7", "7"]}
        for i in (7, 8)
    ],
    "OpenAI's responses": [
        {"id": f"q{i}", "answer": "7", "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant",
             "content": [{"type": "output_text", "text": BOX % (7 if s else i)}]}]}
        for i in (7, 8) for s in (0, 1)
    ],
    "lighteval": [
        {"doc": {"id": str(i), "query": f"question {i}", "choices": ["6", "7"], "gold_index": 1},
         "model_response": {"text": [BOX % i, BOX % 7]}}
        for i in (7, 8)
    ],
    "HELM": [
        {"instance": {"id": f"id{i}", "references": [{"output": {"text": "7"}, "tags": ["correct"]}]},
         "result": {"completions": [{"text": BOX % i, "logprob": -1.0}, {"text": BOX % 7, "logprob": -2.0}]}}
        for i in (7, 8)
    ],
    "vLLM": [
        {"request_id": str(i), "prompt": f"question {i}", "answer": "7",
         "outputs": [{"index": s, "text": BOX % n, "token_ids": [1]} for s, n in enumerate((i, 7))]}
        for i in (7, 8)
    ],
}  # fmt: skip
"""In every shape: two problems, two responses each, of which three are right."""
NONE_IS_RIGHT = [{"response": "x", "answer": None}, {"response": "x", "answer": None}]


def grade(*words) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["grade", *map(str, words)])
    return ended.value.code


def write(path, records):
    """The records as Parquet, JSON Lines or JSON, by the end of the name."""
    if path.suffix == ".parquet":
        pd.DataFrame(records).to_parquet(path)
    else:
        path.write_text(json.dumps(records) if path.suffix == ".json" else "\n".join(map(json.dumps, records)))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("shape", FILES)
def test_responses_of_every_harness_are_judged_by_both_graders(shape, suffix, tmp_path, capsys):
    file, out = write(tmp_path / f"kept{suffix}", FILES[shape]), tmp_path / "out"
    before = file.read_bytes()
    assert grade(file, "--out", out) == 0
    frame = tables.read_responses(out)
    assert list(frame["strict/status"]) == ["right", "right", "wrong", "right"]
    assert list(frame["release/status"]) == ["right", "right", "wrong", "right"]
    assert list(frame["sample"]) == [0, 1, 0, 1]
    lines = pd.read_csv(out / "problems.csv")
    assert list(lines[lines.grader == "strict"]["right"]) == [2, 1]
    assert ((lines.low <= lines.right / lines.responses) & (lines.right / lines.responses <= lines.high)).all()
    found = json.loads((out / "summary.json").read_text())["benchmarks"].popitem()[1]
    assert (found["problems"], found["samples"], found["graders"]["strict"]["avg"]["mean"]) == (2, 2, 0.75)
    assert file.read_bytes() == before
    printed = capsys.readouterr().out
    assert "75.0" in printed
    assert ("strict: 3 of 4 verdicts differ" in printed) is (shape == "kept here")


@needs_bubblewrap
def test_responses_with_tests_are_run_and_problems_may_have_unequal_numbers_of_them(tmp_path):
    tests = {"inputs": ["3\n"], "outputs": ["9\n"]}
    right = "```python\nprint(int(input()) ** 2)\n```"
    records = [{"id": 1, "tests": tests, "outputs": [right, "none", right, right]},
               {"id": 2, "tests": tests, "outputs": ["```\nprint(1)\n```"]}]  # fmt: skip
    assert grade(write(tmp_path / "code.json", records), "--out", tmp_path / "out") == 0
    frame = tables.read_responses(tmp_path / "out")
    assert list(frame["code/status"]) == ["right", "unanswered", "right", "right", "wrong"]
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["benchmarks"]["code"]
    assert (found["samples"], found["most_samples"]) == (1, 4)
    assert found["graders"]["code"]["avg"]["mean"] == pytest.approx((0.75 + 0) / 2)
    assert "2 x 1 to 4" in (tmp_path / "out" / "table.md").read_text()


def test_columns_of_other_names_are_named_and_references_come_from_a_benchmark_of_ones_own(tmp_path):
    kept = write(tmp_path / "kept.jsonl", [{"a": {"b": BOX % 7}, "doc": {"q": "Solve. What is  3+4? Think."}}])
    own = write(
        tmp_path / "own.jsonl", [{"question": "What is 3+4?", "answer": "7"}, {"question": "is", "answer": "8"}]
    )
    words = ("--response", "a.b", "--problem", "doc.q", "--benchmark", own, "--out", tmp_path / "out")
    assert grade(kept, *words) == 0
    assert list(tables.read_responses(tmp_path / "out")["strict/status"]) == ["right"]


def test_responses_without_question_or_answer_are_found_by_the_names_that_a_benchmark_of_ones_own_gives(tmp_path):
    records = [{"custom_id": f"q{n}", "response": {"body": {"choices": [{"message": {"content": BOX % 7}}]}}}
               for n in (1, 2)]  # fmt: skip
    failed = {"custom_id": "q2", "response": {"body": {"error": {"message": "too many requests"}}}}
    kept = write(tmp_path / "kept.jsonl", [*records, failed])
    own = write(tmp_path / "own.jsonl", [{"id": f"q{n}", "question": f"is {n}", "answer": n + 5} for n in (1, 2)])
    assert grade(kept, "--benchmark", own, "--out", tmp_path / "out") == 0
    frame = tables.read_responses(tmp_path / "out")
    assert list(frame["strict/status"]) == ["wrong", "right", "unanswered"]
    assert list(frame.problem) == [load_own(own).problems[n].id for n in (0, 1, 1)]  # as `steer evaluate` names them
    assert set(frame.benchmark) == {"own.jsonl"}


def test_rollouts_of_a_run_on_countdown_are_judged_by_their_prompts(tmp_path):
    (tmp_path / "rollouts").mkdir()
    rows = [{"problem": "2,3=5", "sample": 0, "prompt": "2,3=5:", "response": text, "reward": 0.0,
             "tokens": list(text), "finish_reason": "stop"}
            for text in ("2+3=5", "2+3=6")]  # fmt: skip
    write(tmp_path / "rollouts" / "step_000002.parquet", rows)
    assert grade(tmp_path / "rollouts" / "step_000002.parquet", "--out", tmp_path / "out") == 0
    frame = tables.read_responses(tmp_path / "out")
    assert list(frame["countdown/status"]) == ["right", "wrong"]
    assert list(frame.tokens) == [5, 5]


@pytest.mark.parametrize(
    ("records", "words", "message"),
    [
        ([{"text_": "x", "answer": "7"}], [], "none of the usual columns (response, responses, resps, completion, "
         "...); it has text_, answer: name one with --response COLUMN"),
        ([{"response": "x", "key": "7"}], [], "name one with --reference COLUMN, or the benchmark they are of with "
         "--benchmark NAME"),
        ([{"response": "x", "answer": "7"}], ["--response", "y"], "has no column 'y'; it has response, answer"),
        ([{"response": 7, "answer": "7"}], [], "record 1: the response '7' is no text; name its column with"),
        ([{"response": "x", "answer": {"value": 7}}], [], "a reference is an object, and no tests that run (tests: "),
        ([{"a": {"b": 1}, "answer": "7"}], [], "it has a.b, answer: name one with --response COLUMN"),
        (NONE_IS_RIGHT, [], "name one with --reference COLUMN"),
        ([{"response": "x", "answer": ""}], [], "no response has a reference"),
        (["x"], [], "record 1: 'x' is no object with named columns"),
        ([], [], "holds no record"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_one_line_with_the_remedy(records, words, message, tmp_path, capsys):
    assert grade(write(tmp_path / "kept.jsonl", records), *words, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: FILE: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("kept.jsonl", b'{"response": "x"}\n{', "kept.jsonl is not read (line 2: "),
        ("kept.jsonl", b"\xff\xfe", "kept.jsonl is not read ('utf-8' codec"),
        ("kept.parquet", b"PAR1", "kept.parquet is not read ("),
        ("kept.txt", b"a,b", "kept.txt is none of .parquet, .jsonl, .json"),
        ("kept.json", None, "kept.json is no file"),
        ("", None, "holds no responses.parquet; name a file of responses"),
    ],
)
def test_a_file_that_is_not_read_is_told(name, content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert grade(tmp_path / name) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_with_an_evaluation_is_not_written_over(tmp_path, capsys):
    file = write(tmp_path / "kept.jsonl", FILES["verl validation"])
    assert grade(file, "--out", tmp_path / "out") == 0
    assert grade(file, "--out", tmp_path / "out") == 2
    assert "out holds an evaluation; name another folder" in capsys.readouterr().err
    assert grade(tmp_path / "out", "--out", tmp_path / "again") == 0
    assert "strict: 0 of 4 verdicts differ" in capsys.readouterr().out
