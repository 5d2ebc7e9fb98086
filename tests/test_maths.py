"""Maths: what a parquet file must hold, the splits, the prompts a chat template writes, which answers are right."""

import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest
from small import small_trainer

from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.config.tasks import MathsConfig
from steer_core.policy.model import EMBEDDED
from steer_core.policy.tokenizer import character_tokenizer
from steer_core.problems import Maths, Problem, make_task, split_of
from steer_core.problems.countdown import CHARACTERS
from steer_core.problems.rows import read_rows
from steer_core.problems.sets import distinct
from steer_core.rewards.maths import MathsGrader

BENCHMARKS = Path(__file__).parents[2] / "shared" / "data"
TOKENIZER = character_tokenizer(CHARACTERS)
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<me>{% endif %}"
)


def user(text):
    return [{"role": "user", "content": text}]


def row(text, truth):
    return {"prompt": user(text), "reward_model": {"ground_truth": truth, "style": "rule"}}


def sums(count):
    """Problems of the tests' own that the embedded model's tokenizer can write."""
    return [row(f"{i}+{i + 1}=", str(2 * i + 1)) for i in range(count)]


def write(path, rows):
    pd.DataFrame(rows).to_parquet(path)
    return str(path)


def maths(path, rows, tokenizer=TOKENIZER):
    return make_task(MathsConfig(file=write(path / "problems.parquet", rows)), tokenizer)


def benchmark(name):
    path = BENCHMARKS / f"{name}.parquet"
    if not path.is_file():
        pytest.skip(f"{name}.parquet is not in ../shared/data")
    return str(path)


def test_the_splits_are_disjoint_whole_go_by_the_hash_and_keep_the_files_order(tmp_path):
    task = maths(tmp_path, sums(200))
    assert task.name == "maths"
    sizes = {"train": 0, "validation": 0, "test": 0}
    seen = []
    for split in sizes:
        sizes[split] = sum(split_of(problem["prompt"][0]["content"]) == split for problem in sums(200))
        found = task.problems(split, sizes[split])
        assert found[:3] == task.problems(split, 3)
        assert {split_of(problem.id) for problem in found} == {split}
        assert [int(p.id.split("+")[0]) for p in found] == sorted(int(p.id.split("+")[0]) for p in found)
        seen += found
    assert len({problem.id for problem in seen}) == 200
    assert all(problem.reference == str(eval(problem.prompt[:-1])) for problem in seen)


def test_asking_a_split_for_more_than_it_holds_raises_with_what_it_holds(tmp_path):
    task = maths(tmp_path, sums(50))
    held = sum(split_of(problem["prompt"][0]["content"]) == "test" for problem in sums(50))
    task.problems("test", held)
    with pytest.raises(SteerError, match=rf"holds {held} distinct test problems .* evaluation.problems to {held}"):
        task.problems("test", held + 1)
    with pytest.raises(SteerError, match=r"lower task.train_problems to"):
        task.problems("train", 51)


def test_a_problem_that_stands_in_many_rows_is_one_problem(tmp_path):
    rows = [row("1+1=", "2"), row(" 1+1=\n", "2"), row("1+1=", " 2 "), row("1+2=", "3")]
    assert [(m[0]["content"], truth) for m, truth in maths(tmp_path, rows).rows.values()] == [
        ("1+1=", "2"),
        ("1+2=", "3"),
    ]


def test_problems_without_one_answer_are_left_out_with_a_warning(tmp_path):
    rows = [*sums(3), row("0+1=", "5"), row("7+7=", ""), row("8+8=", "16")]
    with pytest.warns(UserWarning, match="left out 2 of 5 problems"):
        task = maths(tmp_path, rows)
    assert list(task.rows) == ["1+2=", "2+3=", "8+8="]


def test_the_chat_template_writes_the_prompt_up_to_the_policys_turn(tmp_path):
    tokenizer = character_tokenizer(CHARACTERS)
    tokenizer.chat_template = TEMPLATE
    messages = [{"role": "system", "content": "be brief"}, *user("1+1=")]
    rows = [{"prompt": messages, "reward_model": {"ground_truth": "2"}}]
    with_template, without = maths(tmp_path, rows, tokenizer), maths(tmp_path, rows)
    split = split_of("be brief 1+1=")
    assert with_template.problems(split, 1)[0].prompt == "<system>be brief<user>1+1=<me>"
    assert without.problems(split, 1)[0].prompt == "be brief\n\n1+1="
    assert with_template.problems(split, 1)[0].id == without.problems(split, 1)[0].id


def test_a_template_that_refuses_the_messages_is_told(tmp_path):
    tokenizer = character_tokenizer(CHARACTERS)
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(SteerError, match=r"chat template refuses messages with the roles user .*no such role"):
        maths(tmp_path, [row("1+1=", "2")], tokenizer).problems(split_of("1+1="), 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "1+1="}], "row 1 has the columns question; add `question` and `answer`, or `prompt` and"),
        ([{"prompt": "1+1=", "reward_model": {"ground_truth": "2"}}], "row 0: prompt '1[+]1=' is no list"),
        ([{"prompt": [], "reward_model": {"ground_truth": "2"}}], "row 0: prompt '\\[\\]' is no list"),
        ([{"prompt": [{"role": "user"}], "reward_model": {"ground_truth": "2"}}], "give each a `role`"),
        ([{"prompt": user("1+1="), "reward_model": {"ground_truth": 2}}], "row 0: .* has no text as its ground_truth"),
        ([*sums(2), {"prompt": user("a"), "reward_model": None}], "row 2: reward_model 'None'"),
        ([row("1+1=", "")], "holds no problem with one answer among 1 rows"),
    ],
)
def test_a_file_that_does_not_fit_is_told_with_its_row(tmp_path, rows, message):
    with pytest.raises(SteerError, match=message) as caught:
        maths(tmp_path, rows)
    assert str(caught.value).startswith("task.file: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_one_that_is_not_parquet_are_told(tmp_path):
    (tmp_path / "text.parquet").write_text("a,b\n1,2\n")
    for name, message in (("none.parquet", "is no file"), ("text.parquet", "is not read \\(")):
        with pytest.raises(SteerError, match=rf"task.file: .*{name} {message}"):
            Maths(MathsConfig(file=str(tmp_path / name)), TOKENIZER)


@pytest.mark.parametrize(
    ("truth", "response"),
    [
        ("18", r"So she makes $9 \cdot 2 = \boxed{18}$ dollars."),
        ("18", "She keeps 9 eggs at 2 dollars.\nAnswer: 18"),
        ("18", "Answer: $18"),
        ("18", "**Answer:** 18."),
        ("18", "Answer:\n18 dollars"),
        ("18", "Answer: She makes 18 dollars a day."),
        ("18", "The answer is 18."),
        ("18", "first 5, then 18"),
        ("18", r"Answer: 4, no: \boxed{18}"),
        ("18", "Answer: 4\nAnswer: 9*2 = 18"),
        ("1000", "Answer: 1,000"),
        ("1/2", "0.5"),
        (r"\frac{1}{2}", r"**Answer**: \frac{2}{4}"),
        (r"\frac{1}{2}", r"Answer: \(\frac12\)"),
        ("(2,4)", "Answer: (2,4)"),
        ("x^2+1", "Answer: 1+x^2"),
        (".25", "Answer: .25"),
        ("17.5%", r"\boxed{17.5\%}"),
        ("17.5%", "Answer: 17.5%"),
        ("even", "Answer: even"),
        (r"\text{Ann}", r"\boxed{\text{Ann}}"),
    ],
)
def test_a_right_answer_counts_in_every_form(truth, response):
    assert MathsGrader(anywhere=True).grade([truth], [response])[0].correct


@pytest.mark.parametrize(
    ("truth", "response"),
    [
        ("18", ""),
        ("18", "I do not know."),
        ("18", "18, no, 5"),
        ("18", r"\boxed{18}, no: \boxed{5}"),
        ("18", "Answer: 18\nAnswer: 5"),
        ("18", r"Answer: \boxed{5}, or 18"),
        ("18", "Answer:"),
        ("18", "Answer: $$"),
        ("4", "Answer: (2,4)"),
        ("even", "Answer: odd"),
        ("18", "(" * 3000),
        ("18", r"\frac{" * 500),
        ("18", "1" * 10000),
        ("18", "\x00\ud800"),
        ("}{", "5"),
    ],
)
def test_a_wrong_answer_or_a_broken_text_does_not_count_and_does_not_raise(truth, response):
    assert not MathsGrader(anywhere=True).grade([truth], [response])[0].correct


def test_a_task_grades_by_the_problems_reference(tmp_path):
    task = maths(tmp_path, sums(3))
    problem, texts = Problem("", "", "3"), ["1+2=3", "1+2=4", "3", "4", r"\boxed{3}"]
    assert [verdict.correct for verdict in task.grade([problem] * 5, texts)] == [True, False, True, False, True]
    with pytest.raises(ValueError, match="shorter"):
        task.grade([problem] * 2, ["3"])


def test_a_run_trains_on_a_file_of_problems(tmp_path):
    file = write(tmp_path / "problems.parquet", sums(300))
    task = ("task.name=maths", f"task.file={file}", "task.train_problems=32")
    trainer = small_trainer(tmp_path / "run", "rollout.max_new_tokens=4", "train.rollouts=1", *task)
    assert trainer.task.name == "maths"
    assert trainer.fit()


def test_a_model_that_cannot_write_the_problems_is_refused_with_one_short_line(tmp_path, capsys):
    file = write(tmp_path / "problems.parquet", [row(f"What is {i} plus one? " * 50, str(i + 1)) for i in range(99)])
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", "embedded", "task.name=maths", f"task.file={file}", "evaluation.problems=2"])
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert "the tokenizer turns the prompt 'What is" in error
    assert len(error) < 500


def test_evaluate_samples_and_verifies_a_file_of_problems(tmp_path, capsys):
    folder = shutil.copytree(EMBEDDED, tmp_path / "model")
    file = write(tmp_path / "problems.parquet", sums(100))
    settings = (
        "evaluation.problems=3",
        "evaluation.samples=2",
        "evaluation.pass_at=[1]",
        "evaluation.max_new_tokens=3",
    )
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", str(folder), "task.name=maths", f"task.file={file}", *settings])
    assert exit.value.code == 0
    assert "on 3 test problems of maths" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("name", "count"), [("gsm8k_test", 1319), ("math500", 500), ("aime24", 30), ("aime25", 30), ("amc23", 40)]
)
def test_a_benchmark_file_is_read_and_its_problems_are_counted_once(name, count):
    file = benchmark(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Maths(MathsConfig(file=file), TOKENIZER).rows) == count


@pytest.mark.parametrize("name", ["gsm8k_test", "math500", "aime24"])
@pytest.mark.parametrize("form", [r"So it is \boxed{%s}.", "There are 12.\nAnswer: %s", "There are 12.\nAnswer: $%s$"])
def test_the_ground_truth_of_a_benchmark_is_a_right_answer_in_every_form_that_prompts_ask_for(name, form):
    rows = distinct(read_rows(benchmark(name)), name).values()
    truths = [truth for _, truth in rows][:100]
    right = MathsGrader(anywhere=True).grade(truths, [form.replace("%s", truth) for truth in truths])
    assert [truth for truth, verdict in zip(truths, right, strict=True) if not verdict.correct] == []
    wrong = MathsGrader(anywhere=True).grade(truths, [form.replace("%s", "123457")] * len(truths))
    assert not any(verdict.correct for verdict in wrong)
