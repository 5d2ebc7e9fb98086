"""Problem sets in files of one's own, and what tables say of data that are not the manifest's."""

import json
import shutil

import pandas as pd
import pytest
from problem_files import row, user, write
from test_problem_sets import Scripted

from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.evaluation import problem_sets, tables
from steer_core.problems import Problem
from steer_core.problems.own import load_own
from steer_core.problems.prompts import spelled_out, styled
from steer_core.rewards.code_tests import Case, parse_tests

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
CALLED = [{"input": "[1, 2]\n3", "output": "9", "testtype": "functional"}]
SOLUTION = "```python\nclass Solution:\n    def f(self, a, n):\n        return sum(a) * n\n```"
NAMED = [{**test, "metadata": {"func_name": "f"}} for test in CALLED]
RELEASED = {
    "question_content": "Sum a, n times.", "starter_code": "class Solution:\n", "contest_date": "2024-09-01",
    "public_test_cases": json.dumps(CALLED), "private_test_cases": json.dumps(CALLED),
    "metadata": json.dumps({"func_name": "f"}),
}  # fmt: skip
"""A row of LiveCodeBench as it is released."""
LINES = json.dumps({"inputs": ["[1, 2]\n3"], "outputs": ["9"], "fn_name": "f"})
LISTS = {"inputs": [[[1, 2], 3]], "outputs": [9], "fn_name": "f"}
FORMS = {
    "livecodebench-v5": ("livecodebench_v5.parquet", [row("Sum a, n times.", json.dumps(NAMED))]),
    "verl-lines": ("verl.parquet", [row("Sum a, n times.", LINES)]),
    "released": ("test5.jsonl", [RELEASED]),
    "question-and-tests": ("own.jsonl", [{"question": "Sum a, n times.", "tests": LISTS}]),
}


def put(path, records):
    if path.suffix == ".parquet":
        pd.DataFrame(records).to_parquet(path)
    else:
        path.write_text(json.dumps(records) if path.suffix == ".json" else "\n".join(map(json.dumps, records)))
    return path


def evaluate(benchmark, out, *words, model="smoke"):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", model, "--benchmarks", str(benchmark), "--out", str(out), "benchmark.threads=1", *words])
    return stopped.value.code


@needs_bubblewrap
@pytest.mark.filterwarnings("ignore:data livecodebench")
@pytest.mark.parametrize("form", FORMS)
def test_functions_are_tested_alike_from_a_file_of_every_form_to_the_verdict(form, tmp_path, monkeypatch):
    name, records = FORMS[form]
    file = put(tmp_path / name, records)
    monkeypatch.setenv("STEER_DATA", str(tmp_path))
    monkeypatch.setattr(problem_sets, "sampler_of", lambda *_: Scripted([SOLUTION, SOLUTION.replace("* n", "+ n")]))
    benchmark = form if form == "livecodebench-v5" else file
    assert evaluate(benchmark, tmp_path / "out", "benchmark.samples=2") == 0
    frame = tables.read_responses(tmp_path / "out")
    assert list(frame["code/status"]) == ["right", "wrong"]
    assert frame["code/detail"][0] == f"passed {2 if form == 'released' else 1} test{'s' * (form == 'released')}"


def test_a_grader_that_fails_loses_no_response_and_resuming_grades_what_is_kept(tmp_path, monkeypatch, capsys):
    class Refuses:
        name = "refuses"

        def grade(self, references, responses):
            raise SteerError("grader: refused")

    file, graders_of = put(tmp_path / "own.jsonl", [{"question": "1+1?", "answer": "2"}]), problem_sets.graders_of
    monkeypatch.setattr(problem_sets, "sampler_of", lambda *_: Scripted([r"\boxed{2}", r"\boxed{3}"]))
    monkeypatch.setattr(problem_sets, "graders_of", lambda *_: [Refuses()])
    assert evaluate(file, tmp_path / "out", "benchmark.samples=2") == 2
    assert "grader: refused" in capsys.readouterr().err
    (kept,) = (tmp_path / "out" / "parts").rglob("*.parquet")
    assert list(pd.read_parquet(kept).response) == [r"\boxed{2}", r"\boxed{3}"]
    monkeypatch.setattr(problem_sets, "sampler_of", lambda *_: pytest.fail("sampled anew"))
    monkeypatch.setattr(problem_sets, "graders_of", graders_of)
    assert evaluate(file, tmp_path / "out", "benchmark.samples=2", "--resume") == 0
    assert list(tables.read_responses(tmp_path / "out")["strict/status"]) == ["right", "wrong"]


@pytest.mark.parametrize(
    ("name", "records", "answer"),
    [
        ("a.jsonl", [{"question": "q", "answer": "7"}], "7"),
        ("a.json", [{"question": "q", "answer": 7}], "7"),
        ("a.json", [{"problem": "q", "answer": 0.5}], "0.5"),
        ("a.jsonl", [{"question": "q", "answer": "2 + 5 is\n#### 1,007"}], "1007"),
        ("a.jsonl", [{"prompt": user("q"), "solution": r"So \boxed{\frac{1}{2}}."}], r"\frac{1}{2}"),
        ("a.jsonl", [{"question": "q", "answer": ["1", "2"]}], "1, 2"),
        ("a.json", {"data": [{"question": "q", "answer": "7"}], "version": 1}, "7"),
        ("a.json", {"question": ["q", "q"], "answer": ["7", "7"]}, "7"),
        ("a.parquet", [{"question": "q", "answer": "7"}], "7"),
        ("a.parquet", [row("q", "7")], "7"),
    ],
)
def test_a_file_of_questions_and_answers_is_a_problem_set(name, records, answer, tmp_path):
    found = load_own(put(tmp_path / name, records))
    (problem,) = found.problems
    assert (found.name, found.grader, found.samples, found.state) == (name, "maths", 1, "own")
    assert (problem.question, problem.reference) == ("q", answer)


def test_lines_under_a_name_for_one_text_are_read_and_half_a_character_or_no_number_ends_nothing(tmp_path):
    lines = [
        '{"question": "a\\ud83d", "answer": "7"}',
        '{"question": "b", "answer": NaN}',
        '{"question": "c", "answer": 8}',
    ]
    (tmp_path / "a.json").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="left out 1 of 3 problems, which have no answer"):
        found = load_own(tmp_path / "a.json")
    assert [(problem.question, problem.reference) for problem in found.problems] == [("a?", "7"), ("c", "8")]


def test_answers_that_are_tests_make_it_code(tmp_path):
    records = [{"question": "q", "answer": json.dumps(LISTS)}, {"question": "r", "answer": "no tests"}]
    with pytest.warns(UserWarning, match="left out 1 of 2 problems, whose tests cannot be run"):
        found = load_own(put(tmp_path / "a.jsonl", records))
    assert found.grader == "code"
    assert parse_tests(found.problems[0].reference) == [Case([[1, 2], 3], (9,), "f")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"q": "1"}', "a.jsonl, row 1 has the columns q; add `question` and `answer`, or `prompt` and"),
        ("a.jsonl", '{"question": "1", "answer": "2"}\n[]', "record 2: '[]' is no object with named columns"),
        ("a.jsonl", '{"question": "1", "answer": null}', "holds no problem with one answer among 1 rows"),
        ("a.jsonl", '{"question": null, "answer": "2"}', "row 1: its question is empty; write one, or leave the row"),
        ("a.jsonl", '{"question": "1", "answer": {"inputs": ["1"]}}', "no tests that run (outputs: None: give a list"),
        ("a.jsonl", "", "a.jsonl holds no record"),
        ("a.txt", "x", "a.txt is none of .parquet, .jsonl, .json"),
        ("b.jsonl", None, "b.jsonl is no file"),
        ("mine", None, "mine' is unknown; known: countdown, "),
    ],
)
def test_a_file_that_does_not_fit_is_told_in_one_line(name, content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert evaluate(tmp_path / name, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "--benchmarks: " in error
    assert message in error
    assert error.count("\n") == 1


def test_a_template_of_ones_own_is_a_text_with_the_question_in_it(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Q: {question}\nA: {the answer}")
    problem = Problem("x", "", "2", "1+1?", user("shipped"))
    assert styled(problem, str(file)) == styled(problem, spelled_out(str(file))) == user("Q: 1+1?\nA: {the answer}")
    file.write_text("no place")
    with pytest.raises(SteerError, match=r"benchmark.style: .*prompt.txt has no {question} in it; write it where"):
        spelled_out(str(file))
    with pytest.raises(SteerError, match=r"'boxd' is unknown; did you mean 'boxed'\?; or name a text file with {quest"):
        spelled_out("boxd")


def test_a_changed_template_is_another_evaluation(tmp_path, monkeypatch, capsys):
    file, template = put(tmp_path / "own.jsonl", [{"question": "1+1?", "answer": "2"}]), tmp_path / "t.txt"
    monkeypatch.setattr(problem_sets, "sampler_of", lambda *_: Scripted([r"\boxed{2}"]))
    template.write_text("Q: {question}")
    assert evaluate(file, tmp_path / "out", f"benchmark.style={template}") == 0
    assert list(tables.read_responses(tmp_path / "out").prompt.str.contains("Q: 1+1?", regex=False)) == [True]
    template.write_text("{question}")
    assert evaluate(file, tmp_path / "out", f"benchmark.style={template}", "--resume") == 2
    assert "other settings; give" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:data math500")
def test_changed_data_are_said_in_every_table_and_no_published_score_stands_beside(tmp_path, monkeypatch, capsys):
    data = write(tmp_path / "data", [row(f"{i}+1?", str(i + 1)) for i in range(3)], "math500.parquet")
    monkeypatch.setenv("STEER_DATA", str(data))
    monkeypatch.setattr(problem_sets, "sampler_of", lambda *_: Scripted([r"\boxed{1}"] * 3))
    assert evaluate("math500", tmp_path / "out", "--accept-changed", "--published", "Qwen2.5-Math-7B") == 0
    printed = capsys.readouterr().out
    assert "math500 (changed data)" in printed
    assert "no published score stands beside" in printed
    page = (tmp_path / "out" / "table.md").read_text()
    assert "published" not in page
    assert page.count("| math500 (changed data) |") == page.count("| math500") == 3
    pair = tables.paired_lines(tables.paired_evaluations(tmp_path / "out", tmp_path / "out"))
    assert pair[0][0] == "math500 (changed data)"
    with pytest.raises(SystemExit, match="0"):
        main(["data", "audit", "math500", "--accept-changed", "--out", str(tmp_path / "audit")])
    assert "math500 (changed)" in capsys.readouterr().out
    assert "| math500 |" not in (tmp_path / "audit" / "data_audit.md").read_text()


def test_a_part_of_a_set_is_said_and_no_published_score_stands_beside_it():
    one = {"problems": 3, "data": {"state": "verified", "of": 500}, "graders": {}}
    assert tables.noted("math500", 3, one["data"]) == "math500 (first 3 of 500)"
    assert tables.published_lines({"math500": one}, "mine", tables.published_scores()) == []
    whole = {**one, "problems": 500}
    assert tables.noted("math500", 500, one["data"]) == "math500"
    assert len(tables.published_lines({"math500": whole}, "mine", tables.published_scores())) > 1


def test_an_evaluation_from_before_a_setting_was_there_goes_on(tmp_path, monkeypatch):
    file, out = put(tmp_path / "own.jsonl", [{"question": "1+1?", "answer": "2"}]), tmp_path / "out"
    monkeypatch.setattr(problem_sets, "sampler_of", lambda *_: Scripted([r"\boxed{2}"]))
    assert evaluate(file, out) == 0
    record = json.loads((out / "evaluation.json").read_text())
    del record["data"], record["about"]["settings"]["benchmark"]["style"]
    (out / "evaluation.json").write_text(json.dumps(record))
    assert evaluate(file, out, "--resume") == 0
    assert json.loads((out / "evaluation.json").read_text())["data"] == {"own.jsonl": {"state": "own", "of": 1}}
    (out / "evaluation.json").write_text("[]")
    assert evaluate(file, out, "--resume") == 2


@pytest.mark.parametrize("words", [["evaluate", ""], ["evaluate", "", "--benchmarks", "countdown"], ["estimate", ""]])
def test_an_empty_word_is_no_model(words, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--out", str(tmp_path / "out")])
    assert capsys.readouterr().err.startswith("error: path '': is empty")


def test_half_a_character_in_a_record_becomes_a_question_mark_as_in_files_that_are_graded(tmp_path):
    (tmp_path / "own.jsonl").write_text(
        '{"question": "\\ud83d\\ude00", "answer": "1"}\n{"question": "\\ud83d", "answer": "1"}'
    )
    assert [problem.question for problem in load_own(tmp_path / "own.jsonl").problems] == ["\U0001f600", "?"]


def test_an_answer_that_is_nan_is_none(tmp_path):
    file = put(tmp_path / "own.jsonl", [{"question": "a", "answer": 2.0}, {"question": "b", "answer": float("nan")}])
    with pytest.warns(UserWarning, match="no answer"):
        assert [problem.reference for problem in load_own(file).problems] == ["2"]
