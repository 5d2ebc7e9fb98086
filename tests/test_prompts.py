"""Prompts: known instructions are taken off exactly, styles are explicit, and the rendered text hides nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from problem_files import released_rows, user

from steer_core.common.errors import SteerError
from steer_core.policy.tokenizer import character_tokenizer
from steer_core.problems.countdown import CHARACTERS
from steer_core.problems.problem import Problem
from steer_core.problems.prompts import (
    CHINESE,
    CHINESE_TAILS,
    NO_FORM,
    STYLES,
    WRAPPERS,
    prompted,
    question_of,
    render,
    styled,
    unwrap,
)

PROBLEM = Problem("set/1", "", "2", "What is 1+1?", user("as shipped"))
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.mark.parametrize("name", ["aime25", "amc23"])
def test_a_question_is_recovered_from_the_message_where_raw_problem_is_cut_in_the_wrong_place(name):
    for question, extra in released_rows(name):
        assert extra["raw_problem"].startswith(" by step. The last line")
        assert extra["raw_problem"].endswith("\n\n" + question)


@pytest.mark.parametrize("name", ["aime24", "math500", "minerva", "olympiadbench", "gsm8k", "omni"])
def test_the_question_is_raw_problem_where_that_is_whole(name):
    assert all(question == extra["raw_problem"] for question, extra in released_rows(name))


@pytest.mark.parametrize("name", ["aime24", "aime25", "amc23", "gsm8k", "omni", "dapo-math-17k"])
def test_no_question_of_a_released_file_keeps_an_instruction(name):
    for question, _ in released_rows(name):
        assert not question.startswith("Solve the following math problem step by step")
        assert "on its own line" not in question
        assert "<final_answer>" not in question


@given(TEXT)
def test_stripping_undoes_every_style_that_writes_a_known_instruction(question):
    assert unwrap(STYLES["boxed"].messages(question)[0]["content"]) == (r"\boxed{Answer}", question)
    assert unwrap(STYLES["answer-line"].messages(question)[0]["content"]) == ("Answer: $Answer", question)
    assert unwrap(STYLES["bare"].messages(question)[0]["content"]) == (NO_FORM, question)
    assert question_of(STYLES["qwen-boxed"].messages(question)) == (NO_FORM, question)


@given(TEXT, st.sampled_from(sorted(WRAPPERS)))
def test_stripping_takes_a_released_instruction_off_exactly(question, form):
    head, tail = WRAPPERS[form]
    assert unwrap(head + question + tail) == (form, question)
    assert unwrap(head + question) == (NO_FORM, head + question)
    assert unwrap(question + tail) == (NO_FORM, question + tail)


@given(TEXT, st.lists(st.sampled_from(CHINESE_TAILS), min_size=1, max_size=3))
def test_the_chinese_instruction_is_taken_off_however_often_it_stands(question, tails):
    assert unwrap(question + "".join(tails)) == (CHINESE, question)


def test_a_head_and_a_tail_that_overlap_are_no_instruction(monkeypatch):
    monkeypatch.setattr("steer_core.problems.prompts.WRAPPERS", {"form": ("ab", "bc")})
    assert unwrap("abc") == (NO_FORM, "abc")
    assert unwrap("abbc") == ("form", "")


def test_the_bare_question_is_the_last_that_the_user_says():
    messages = [{"role": "system", "content": "s"}, *user("first"), {"role": "assistant", "content": "a"}, *user("q")]
    assert question_of(messages) == (NO_FORM, "q")
    assert question_of([{"role": "system", "content": "only"}]) == (NO_FORM, "only")


def test_every_style_has_a_meaning_and_shipped_gives_the_files_messages_as_a_copy():
    assert all(style.meaning for style in STYLES.values())
    shipped = styled(PROBLEM, "shipped")
    assert shipped == PROBLEM.messages
    shipped[0]["content"] = "changed"
    assert PROBLEM.messages[0]["content"] == "as shipped"


def test_styles_say_what_they_ask_for():
    assert styled(PROBLEM, "bare") == user("What is 1+1?")
    assert r"\boxed{...}" in styled(PROBLEM, "boxed")[0]["content"]
    assert '"Answer:"' in styled(PROBLEM, "answer-line")[0]["content"]
    assert "```python" in styled(PROBLEM, "code")[0]["content"]
    system = r"Please reason step by step, and put your final answer within \boxed{}."
    assert styled(PROBLEM, "qwen-boxed") == [{"role": "system", "content": system}, *user("What is 1+1?")]
    with pytest.raises(SteerError, match=r"benchmark\.style: 'boxd' is unknown; did you mean 'boxed'"):
        styled(PROBLEM, "boxd")


def test_the_rendered_prompt_shows_the_system_prompt_that_the_chat_template_adds():
    tokenizer = character_tokenizer(CHARACTERS)
    assert render(user("1+1"), tokenizer) == "1+1"
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}<system>hidden{% endif %}"
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<me>"
    )
    assert render(user("1+1"), tokenizer) == "<system>hidden<user>1+1<me>"
    assert render([{"role": "system", "content": "mine"}, *user("1+1")], tokenizer) == "<system>mine<user>1+1<me>"


def test_a_prompted_problem_keeps_all_but_its_prompt():
    tokenizer = character_tokenizer(CHARACTERS)
    for style, text in (("bare", "What is 1+1?"), ("shipped", "as shipped")):
        found = prompted(PROBLEM, style, tokenizer)
        assert found.prompt == text
        assert (found.id, found.reference, found.question) == (PROBLEM.id, PROBLEM.reference, PROBLEM.question)
        assert found.messages == PROBLEM.messages
