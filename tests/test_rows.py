"""Rows from the hub: each set's own columns, LiveCodeBench's packed tests, ArcherCodeR's table of columns."""

import base64
import json
import pickle
import zlib
from collections import Counter
from pathlib import Path

import datasets
import pandas as pd
import pytest
from problem_files import row, user

from steer_core.common.errors import SteerError
from steer_core.common.records import json_records
from steer_core.problems import sets
from steer_core.problems.rows import last_box
from steer_core.problems.sets import load_set
from steer_core.rewards.code_tests import Case, parse_tests


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Puts rows on a pretended hub, and keeps every local file out of sight; returns the calls that were made."""
    calls = []

    def put(rows=None, files=None):
        def load_dataset(*args, **kwargs):
            calls.append((args, kwargs))
            return datasets.Dataset.from_list(rows)

        def download(self, url):
            calls.append(url)
            path = tmp_path / Path(url).name
            path.write_text(files[url.split("@main/")[1]])
            return str(path)

        monkeypatch.setattr(sets, "BESIDE", tmp_path / "absent")
        monkeypatch.delenv("STEER_DATA", raising=False)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(datasets.DownloadManager, "download", download)
        return calls

    return put


HUB_ROWS = {
    "aime24": ({"id": 60, "problem": "p", "solution": r"\boxed{20{4}} or \boxed{2\frac{0}{4}}"}, r"2\frac{0}{4}"),
    "aime25": ({"problem": "p", "answer": "70", "id": "0"}, "70"),
    "amc23": ({"id": 0, "question": "p", "answer": 27.0}, "27"),
    "math500": ({"problem": "p", "solution": "s", "answer": r"\frac{1}{2}", "unique_id": "u"}, r"\frac{1}{2}"),
    "minerva": ({"question": "p", "answer": "1.6"}, "1.6"),
    "olympiadbench": ({"question": "p", "final_answer": ["$(1,2)$", "3"], "is_multiple_answer": True}, "(1,2), 3"),
    "gsm8k": ({"question": "p", "answer": "so 9 * 2 = 18\n#### 1,018"}, "1018"),
    "omni": ({"domain": ["Algebra"], "problem": "p", "answer": "2", "source": "s"}, "2"),
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_the_hubs_columns_become_a_question_and_its_answer_and_nothing_is_called_verified(name, hub):
    record, truth = HUB_ROWS[name]
    calls = hub([record, record])
    asked = sets.facts_of(name).hub
    with pytest.warns(UserWarning, match=rf"from the hub \({asked.id}@.*, 2 rows of 1 problems; .* not verified"):
        found = load_set(name)
    assert [(p.question, p.reference) for p in found.problems] == [("p", truth)]
    assert (found.source, len(found.problems)) == (f"{asked.id}@{asked.revision}", 1)
    assert calls == [((asked.id, asked.config), {"split": asked.split, "revision": asked.revision})]


def test_the_hubs_training_set_has_verls_columns_and_equal_rows_share_one_object(hub):
    hub([{**row(f"p{i % 2}"), "data_source": "math_dapo"} for i in range(6)])
    with pytest.warns(UserWarning, match="6 rows of 2 problems"):
        release = sets.read_release("dapo-math-17k")
    assert Counter(map(id, release.rows)).most_common()[0][1] == 3
    assert release.rows[0] == (user("p0"), "2")


def test_hub_columns_that_are_not_there_are_told(hub):
    hub([{"Problem": "p", "Answer": "1"}])
    with pytest.raises(SteerError, match=r"data aime25: math-ai/aime25, row 0 has the columns .*Answer.*, not problem"):
        load_set("aime25")


def livecodebench(date, hidden, metadata="{}", starter="", kind="stdin"):
    return {
        "question_content": f"asked on {date}",
        "starter_code": starter,
        "contest_date": f"{date}T00:00:00",
        "public_test_cases": json.dumps([{"input": "1\n", "output": "2\n", "testtype": kind}]),
        "private_test_cases": hidden,
        "metadata": metadata,
    }


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def test_livecodebench_is_cut_to_its_window_and_its_hidden_tests_are_unpacked(hub):
    tests = json.dumps([{"input": "3\n", "output": "4\n", "testtype": "stdin"}])
    named = json.dumps({"func_name": "solve"})
    files = {f"test{i}.jsonl": "" for i in ("", *range(2, 6))}
    days = ("2024-07-31", "2024-08-01", "2025-01-31", "2025-02-01")
    old, first, last, late = (livecodebench(day, packed(tests)) for day in days)
    called = tests.replace("stdin", "functional")
    last = livecodebench("2025-01-31", called, named, "class Solution:\n", "functional")
    files["test.jsonl"] = "\n".join(map(json.dumps, (old, first))) + "\n"
    files["test5.jsonl"] = "\n".join(map(json.dumps, (last, late)))
    calls = hub(files=files)
    with pytest.warns(UserWarning, match="2 rows of 2 problems"):
        found = load_set("livecodebench-v5")
    assert calls == [f"hf://datasets/livecodebench/code_generation_lite@main/{name}" for name in files]
    assert [parse_tests(problem.reference) for problem in found.problems] == [
        [Case("1\n", ("2\n",)), Case("3\n", ("4\n",))],
        [Case([1], (2,), "solve"), Case([3], (4,), "solve")],
    ]
    assert found.problems[0].question == "asked on 2024-08-01"
    assert found.problems[1].question == "asked on 2025-01-31\n\nStart from:\n```python\nclass Solution:\n```"
    assert found.samples == 4


def test_a_pickle_that_would_run_something_is_refused(hub, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    files = {f"test{i}.jsonl": "" for i in ("", *range(2, 6))}
    files["test.jsonl"] = json.dumps(livecodebench("2024-09-01", packed(Evil())))
    hub(files=files)
    with pytest.raises(SteerError, match=r"livecodebench.*UnpicklingError refused"):
        load_set("livecodebench-v5")
    assert not (tmp_path / "ran").exists()


def test_archercoder_is_read_from_pandas_table_of_columns(hub):
    tests = [{"inputs": ["1"], "outputs": ["2"]}, {"functional": "check(f)"}]
    columns = {
        "prompt": {str(i): user(f"problem {i}") for i in range(2)},
        "reward_model": {str(i): {"ground_truth": json.dumps(test), "style": "rule"} for i, test in enumerate(tests)},
    }
    hub(files={"train/archercoder-1.5b-train.json": json.dumps(columns)})
    with pytest.warns(UserWarning, match="left out 1 of 2 problems, whose tests cannot be run .*functional"):
        found = load_set("archercoder")
    assert [json.loads(problem.reference) for problem in found.problems] == tests[:1]
    assert (found.grader, sets.facts_of("archercoder").use) == ("code", "training")


def test_a_json_file_is_read_by_lines_by_list_or_by_columns(tmp_path):
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    path = tmp_path / "rows.json"
    for text, lines in (
        ("\n".join(map(json.dumps, rows)) + "\n\n", True),
        (json.dumps(rows, indent=1), False),
        (pd.DataFrame(rows).to_json(), False),
    ):
        path.write_text(text)
        assert list(json_records(path, lines)) == rows


@pytest.mark.parametrize(
    ("text", "box"),
    [(r"a \boxed{1} b \boxed{\frac{1}{2}} c", r"\frac{1}{2}"), ("none", ""), (r"\boxed{open", ""), (r"\boxed{}", "")],
)
def test_the_last_box_is_read_with_its_braces_balanced(text, box):
    assert last_box(text) == box
