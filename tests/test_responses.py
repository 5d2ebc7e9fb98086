"""Responses as Parquet come back as they were, tokens join to the text, and what is damaged is named."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampled import HOSTILE, byte_level_tokenizer, response, some_responses, spaced_tokenizer, tidying_tokenizer

from steer_core.common.errors import SteerError
from steer_core.policy.model import EMBEDDED, load_tokenizer
from steer_core.runs import responses
from steer_core.runs.responses import COLUMNS, TOKEN_COLUMNS, read, token_texts, write
from steer_core.runs.rollouts import rollout_path, steps_in

BYTES = byte_level_tokenizer()
OTHERS = {
    "embedded": load_tokenizer(str(EMBEDDED)), "bytes": BYTES, "spaced": spaced_tokenizer(), "tidy": tidying_tokenizer()
}  # fmt: skip


def in_float32(row):
    """A row as the columns hold it."""
    values = vars(row) | {
        name: [float(np.float32(x)) for x in getattr(row, name)]
        for name in ("probability", "logprob", "entropy", "lambda_", "omega")
    }
    return dataclasses.replace(row, **values)


def rewritten(path, change):
    """The file with its table changed."""
    pq.write_table(change(pq.read_table(path)), path)
    return path


@pytest.fixture
def file(tmp_path):
    write(tmp_path / "step_000001.parquet", some_responses())
    return tmp_path / "step_000001.parquet"


def test_responses_come_back_as_they_were(tmp_path):
    rows = [*some_responses(), response(HOSTILE, "x\u2028\0</script>", prompt="\u202e\0\n"), response([])]
    write(tmp_path / "a.parquet", rows)
    assert read(tmp_path / "a.parquet") == [in_float32(row) for row in rows]
    write(tmp_path / "a.parquet", [])
    assert read(tmp_path / "a.parquet") == []


def test_any_reader_of_parquet_finds_a_row_a_response_and_a_value_a_token(file):
    table = pd.read_parquet(file)
    assert list(table) == list(COLUMNS)
    assert {"problem", "prompt", "response", "reward", "advantage", "finish_reason", "sample"} == set(table) - set(
        TOKEN_COLUMNS
    )
    assert set(TOKEN_COLUMNS) == {"tokens", "token_ids", "probability", "logprob", "entropy", "lambda", "omega"}
    for row in table.itertuples():
        assert "".join(row.tokens) == row.response + ("<eos>" if row.finish_reason == "stop" else "")
    assert pq.read_schema(file).field("omega").type == pa.list_(pa.float32())
    assert pq.read_schema(file).field("token_ids").type == pa.list_(pa.int32())


@given(st.text(max_size=40), st.booleans())
def test_tokens_of_a_byte_level_tokenizer_join_to_the_response(text, ended):
    ids = BYTES(text, add_special_tokens=False)["input_ids"] + [BYTES.eos_token_id] * ended
    assert "".join(token_texts(BYTES, ids, ended)) == text + "<|im_end|>" * ended


@pytest.mark.parametrize("name", OTHERS)
@given(st.data())
def test_whatever_is_sampled_joins_to_what_it_decodes_to(name, data):
    tokenizer = OTHERS[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    texts = token_texts(tokenizer, ids, False)
    assert len(texts) == len(ids)
    assert "".join(texts) == (tokenizer.decode(ids) if ids else "")


def test_a_character_belongs_to_the_last_of_its_bytes():
    ids = BYTES("a😀é.", add_special_tokens=False)["input_ids"]
    assert token_texts(BYTES, ids, False) == ["a", "", "", "", "😀", "", "é", "."]
    assert token_texts(BYTES, ids[:3], False)[:2] == ["a", ""]
    assert "".join(token_texts(BYTES, ids[:3], False)) == "a\ufffd"


def test_tokens_keep_the_spaces_that_they_lose_alone():
    assert token_texts(OTHERS["spaced"], [1, 2, 4, 7, 1], False) == ["so", " the", "1", ".", " so"]
    texts = token_texts(OTHERS["tidy"], [1, 2, 6, 1], False)
    assert "".join(texts) == OTHERS["tidy"].decode([1, 2, 6, 1]) == "so the. so"
    assert texts[3] == " so"


def test_text_that_a_tokenizer_rewrites_is_shared_out_all_the_same():
    """ "so do not" decodes to "so don't", though "do not" stays."""
    assert token_texts(OTHERS["tidy"], [1, 3, 4, 6], False) == ["so", " do", "n't", "."]


def test_the_end_token_and_special_tokens_within_go_by_their_names():
    embedded = OTHERS["embedded"]
    assert token_texts(embedded, [4, 0, 2, 1], True)[1:] == ["<pad>", "<unk>", "<eos>"]
    assert token_texts(embedded, [1], True) == ["<eos>"]
    assert token_texts(embedded, [], False) == []


def test_a_long_response_joins_too():
    ids = BYTES("so the answer is 12 é, " * 500, add_special_tokens=False)["input_ids"]
    texts = token_texts(BYTES, ids, False)
    assert len(texts) == len(ids) > 3_000
    assert "".join(texts) == BYTES.decode(ids)


def test_a_kill_or_a_full_disk_leaves_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def stop(table, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(responses.pq, "write_table", stop)
    with pytest.raises(OSError, match="No space"):
        write(file, [])
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_steps_are_found_by_their_files_alone(tmp_path):
    (tmp_path / "rollouts").mkdir()
    for name in ("step_000012.parquet", "step_1000000.parquet", "step_x.parquet", ".partial_step_000002.parquet"):
        (tmp_path / "rollouts" / name).touch()
    assert steps_in(tmp_path) == [12, 1_000_000]
    assert rollout_path(tmp_path, 12).exists()
    assert steps_in(tmp_path / "nowhere") == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}", b"PAR1" + bytes(200) + b"PAR1"])
def test_a_damaged_file_is_named(file, content):
    file.write_bytes(content)
    with pytest.raises(SteerError, match=rf"{file}: damaged or no Parquet .*; delete it"):
        read(file)


def test_a_cut_or_overwritten_file_is_named(file):
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SteerError, match="damaged"):
        read(file)
    file.write_bytes(whole[:200] + b"\xff" * 300 + whole[500:])
    with pytest.raises(SteerError, match=str(file)):
        read(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SteerError, match=r"none.parquet: no such file; name one"):
        read(tmp_path / "none.parquet")


@pytest.mark.parametrize("name", COLUMNS)
def test_a_missing_column_is_named(file, name):
    rewritten(file, lambda table: table.drop_columns([name]))
    with pytest.raises(SteerError, match=rf"{file}: column {name} is missing; .*responses.write"):
        read(file)


def test_a_column_of_another_type_is_named(file):
    words = pa.array([["x"]] * 6)
    rewritten(file, lambda table: table.set_column(table.column_names.index("omega"), "omega", words))
    with pytest.raises(SteerError, match=r"column omega holds list<.*string>, not list<.*float>; write it"):
        read(file)


@pytest.mark.parametrize("value", [None, [None] * 8])
def test_a_missing_value_is_named(file, value):
    def change(table):
        lists = table["lambda"].to_pylist()
        return table.set_column(table.column_names.index("lambda"), "lambda", pa.array([value, *lists[1:]]))

    rewritten(file, change)
    with pytest.raises(SteerError, match="column lambda lacks a value"):
        read(file)


def test_other_columns_and_wider_types_are_taken(file):
    before = read(file)
    table = pd.read_parquet(file)
    table["note"] = "mine"
    table.iloc[:, ::-1].to_parquet(file)
    assert read(file) == before


def test_lists_of_different_lengths_are_refused_both_ways(file, tmp_path):
    rows = some_responses()
    rows[1] = dataclasses.replace(rows[1], omega=rows[1].omega[:-1])
    with pytest.raises(SteerError, match="row 1 has 6 values of omega and 7 tokens; give every token column"):
        write(tmp_path / "new.parquet", rows)
    assert not (tmp_path / "new.parquet").exists()
    rewritten(file, lambda table: table.set_column(7, "tokens", pa.array([["x"]] * 6)))
    with pytest.raises(SteerError, match=r"row 0 has 7 values of token_ids and 1 tokens"):
        read(file)


@pytest.mark.parametrize(
    "fields", [{"problem": 3}, {"entropy": ["much"]}, {"tokens": ["\ud800"]}, {"token_ids": [1 << 40]}, {"sample": "x"}]
)
def test_a_value_that_does_not_fit_its_column_is_refused(tmp_path, fields):
    row = dataclasses.replace(response(["x"]), **fields)
    with pytest.raises(SteerError, match="a value does not fit its column"):
        write(tmp_path / "a.parquet", [row])
    assert list(tmp_path.iterdir()) == []


def test_reading_needs_no_torch():
    code = "import sys, json, steer_core.runs.responses, steer_core.show; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(done.stdout) is False
