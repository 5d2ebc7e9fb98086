"""Any table of (problem, correct): pass@k, pairs by problem, improvement over seeds; verdicts of anyone's files."""

import json

import numpy as np
import pandas as pd
import pytest

import steer_core
from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.evaluation import tables
from steer_core.evaluation.verdicts import read_verdicts
from steer_core.stats.outcomes import Outcomes, improvement
from steer_core.stats.pass_at_k import paired, pass_interval

given = Outcomes.of(["a", "b", "a", "b", "a", "b"], [1, 0, True, "false", 0.0, "Right"])


def test_a_table_is_counted_by_problem_in_order_of_first_appearance():
    assert given == Outcomes(("a", "b"), (2, 1), (3, 3))
    assert given.samples == 3
    assert Outcomes.of(np.array([7, 7]), np.array([True, False])) == Outcomes(("7",), (1,), (2,))


def test_pass_at_k_of_a_table_is_that_of_its_counts_and_problems_may_have_different_numbers_of_samples():
    assert given.pass_at(2) == pass_interval([2, 1], 3, 2)
    assert given.pass_at(2).mean == pytest.approx((1 + 2 / 3) / 2)
    uneven = Outcomes.of(["a", "a", "b", "b", "b"], [1, 0, 1, 0, 0])
    assert uneven.pass_at(2).mean == pytest.approx((1 + 2 / 3) / 2)
    with pytest.raises(SteerError, match="pass@3: k is not within 1 and the 2 samples"):
        uneven.pass_at(3)
    with pytest.raises(SteerError, match="problems: 2 to 3 samples each"):
        uneven.samples  # noqa: B018


def test_two_tables_are_paired_by_the_problems_name_whatever_the_order():
    first = Outcomes.of(list("aabbcc"), [1, 1, 1, 0, 0, 0])
    second = Outcomes.of(list("ccbbaa"), [1, 0, 0, 0, 1, 1])
    decision = first.against(second)
    assert decision == paired([2, 1, 0], [2, 0, 1], 2, 2)
    assert decision.difference.mean == 0
    with pytest.raises(SteerError, match="'d' is in one table and not in the other"):
        first.against(Outcomes.of(list("aabbccdd"), [0] * 8))


def test_improvement_takes_a_table_a_seed():
    better, worse = Outcomes.of("ab", [1, 1]), Outcomes.of("ba", [0, 1])
    assert improvement([better, better], [worse]).mean == 0.75  # ahead at b, level at a
    assert steer_core.improvement([worse], [better]).mean == 0.25
    with pytest.raises(SteerError, match="seeds: a method has no table"):
        improvement([], [worse])


@pytest.mark.parametrize(
    ("problems", "correct", "told"),
    [
        (["a"], [2], "correct, row 1: '2' is neither right nor wrong"),
        (["a", "a"], [1, None], "correct, row 2: 'None' is neither"),
        (["a"], [float("nan")], "correct, row 1: 'nan' is neither"),
        (["a", "b"], [1], "correct: has 1 rows and the column of problems 2"),
        ([], [], "problems: the table has no row"),
    ],
)
def test_what_is_no_table_is_refused_by_row(problems, correct, told):
    with pytest.raises(SteerError, match=told):
        Outcomes.of(problems, correct)


ROWS = [{"doc_id": i, "exact_match": float(i % 3 == 0)} for i in range(12)]


def files(folder):
    """The same verdicts in four forms."""
    jsonl, csv, parquet, lists = (folder / name for name in ("a.jsonl", "b.csv", "c.parquet", "d.json"))
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    csv.write_text("doc_id,passed\n" + "".join(f"{r['doc_id']},{bool(r['exact_match'])}\n" for r in ROWS))
    pd.DataFrame(ROWS).to_parquet(parquet)
    lists.write_text(json.dumps([{"question_id": str(r["doc_id"]), "correct": [r["exact_match"] == 1]} for r in ROWS]))
    return jsonl, csv, parquet, lists


def test_every_form_of_a_file_gives_the_same_verdicts(tmp_path):
    frames = [
        read_verdicts(path, problem)[["problem", "given/status"]]
        for path, problem in zip(files(tmp_path), (None, None, None, "question_id"), strict=True)
    ]
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frames[0], frame)
    assert (frames[0]["given/status"] == "right").sum() == 4


def test_two_files_are_paired_as_the_function_on_counts_pairs_them(tmp_path):
    first = tmp_path / "first.jsonl"
    second = tmp_path / "second.csv"
    right = [[1, 1], [1, 0], [0, 0], [1, 1]]
    first.write_text("".join(json.dumps({"id": f"p{i}", "correct": r}) + "\n" for i, r in enumerate(right)))
    second.write_text("id,correct\n" + "".join(f"p{i},{v}\np{i},{v}\n" for i, v in ((3, 0), (2, 0), (1, 1), (0, 1))))
    found = tables.paired_evaluations(first, second)["all"]
    assert found["decision"] == paired([2, 1, 0, 2], [2, 2, 0, 0], 2, 2)
    assert found["grader"] == "given"
    assert tables.paired_lines({"all": found})[0][-1] == "not told"  # neither file holds prompts


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ('{"id": "a", "correct": 3}\n', (), "row 1, correct: '3' is neither right nor wrong; write 1 or 0"),
        (
            '{"id": "a", "answer": "x"}\n',
            (),
            "none of the usual columns .correct, .*--correct COLUMN; responses without",
        ),
        ('{"correct": 1}\n', (), "none of the usual columns .problem, .*--problem COLUMN"),
        ('{"id": "", "correct": 1}\n', (), "row 1, id: '' names no problem"),
        ('{"id": "a", "correct": 1}\n', ("name", None), "has no column 'name'; it has id, correct"),
        ("", (), "holds no record"),
        ("{\n", (), "is not read .line 1"),
    ],
)
def test_bad_files_of_verdicts_are_told_in_one_line_by_row_and_column(tmp_path, text, options, told):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(SteerError, match=told) as error:
        read_verdicts(path, *options)
    assert "\n" not in str(error.value)


def test_the_command_pairs_files_and_refuses_those_of_different_problems_in_one_line(tmp_path, capsys):
    jsonl, csv, *_ = files(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["paired", str(jsonl), str(csv), "--problem", "doc_id"])
    assert end.value.code == 0
    assert "12 x 1" in capsys.readouterr().out
    other = tmp_path / "other.csv"
    other.write_text("doc_id,passed\n1,1\n")
    with pytest.raises(SystemExit) as end:
        main(["paired", str(jsonl), str(other)])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "was given other problems of all" in told
    assert len(told.splitlines()) == 1
