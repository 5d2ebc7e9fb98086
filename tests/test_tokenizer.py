"""The character tokenizer, and the check that keeps a foreign tokenizer from training in silence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from steer_core.common.errors import SteerError
from steer_core.policy.tokenizer import SPECIAL_TOKENS, character_tokenizer, check_prompt, check_tokenizer
from steer_core.problems.countdown import CHARACTERS

TOKENIZER = character_tokenizer(CHARACTERS)
PROMPT = "3,7,8,21=24:"


@given(st.text(CHARACTERS, min_size=1, max_size=80))
def test_text_goes_there_and_back_one_token_a_character(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert ids == [len(SPECIAL_TOKENS) + CHARACTERS.index(c) for c in text]
    assert TOKENIZER.decode(ids) == text


def test_special_tokens_have_their_places():
    assert TOKENIZER.convert_tokens_to_ids(["<pad>", "<eos>", "<unk>"]) == [0, 1, 2]
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id) == (0, 1, 2)
    assert len(TOKENIZER) == 3 + len(CHARACTERS)


def test_encoding_adds_no_special_token_of_its_own():
    assert TOKENIZER(PROMPT)["input_ids"] == TOKENIZER(PROMPT, add_special_tokens=False)["input_ids"]


def test_other_characters_become_unknown_one_by_one():
    assert TOKENIZER("1x y\n2", add_special_tokens=False)["input_ids"][0] == 3 + CHARACTERS.index("1")
    assert TOKENIZER("x٣", add_special_tokens=False)["input_ids"] == [2, 2]


def test_prompts_are_padded_on_the_left():
    batch = TOKENIZER(["1+1", "1"], padding=True)
    assert batch["input_ids"][1][:2] == [0, 0]
    assert batch["attention_mask"] == [[1, 1, 1], [0, 0, 1]]


def test_special_tokens_stay_visible_when_decoded():
    assert TOKENIZER.decode([4, 1, 0, 2]) == "1<eos><pad><unk>"


def test_saved_tokenizer_loads_as_the_same(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded(PROMPT)["input_ids"] == TOKENIZER(PROMPT)["input_ids"]
    assert loaded.decode(loaded(PROMPT)["input_ids"]) == PROMPT
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.padding_side) == (0, 1, "left")


def test_a_fitting_tokenizer_passes():
    check_tokenizer(TOKENIZER, len(TOKENIZER))
    check_tokenizer(TOKENIZER, len(TOKENIZER) + 12)
    check_prompt(TOKENIZER, PROMPT)


def test_a_tokenizer_larger_than_the_model_raises():
    with pytest.raises(SteerError, match="has 20 tokens and the model embeds 19"):
        check_tokenizer(TOKENIZER, len(TOKENIZER) - 1)


def test_a_tokenizer_without_an_end_raises():
    endless = character_tokenizer(CHARACTERS)
    endless.eos_token = None
    with pytest.raises(SteerError, match="no eos token"):
        check_tokenizer(endless, 100)


@pytest.mark.parametrize("prompt", ["What is 1+1?", "3,7,8,21=24: ", ""])
def test_a_prompt_that_does_not_come_back_raises(prompt):
    with pytest.raises(SteerError, match="into"):
        check_prompt(TOKENIZER, prompt)
