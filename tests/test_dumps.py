"""The format of a dump: what is written is read, under anyone's names; whatever does not fit is told in one line."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from dumped import drawn, without
from hypothesis import given
from hypothesis import strategies as st

from steer_core.common.errors import SteerError
from steer_core.runs import dumps

ROW = {"logprob": [-1.0, -2.0, -0.5], "advantage": 1.0, "entropy": [0.5, 0.6, 0.7], "step": 3, "reward": 1.0}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    rows = drawn(steps=2, sampler_logprob=None, prompt="1+1=", response="2")
    rows = [row | {"sampler_logprob": row["old_logprob"], "mask": [1] * len(row["logprob"])} for row in rows]
    dumps.write(tmp_path / f"d.{suffix}", rows)
    read, made = dumps.read(tmp_path / f"d.{suffix}"), dumps.of_rows(rows, "made")
    assert read.settings == made.settings == {"clip_low": 0.2, "clip_high": 0.28, "max_tokens": 40, "vocabulary": 30}
    pd.testing.assert_frame_equal(read.responses.drop(columns="where"), made.responses.drop(columns="where"))
    assert read.tokens.keys() == made.tokens.keys()
    for name, values in made.tokens.items():
        np.testing.assert_allclose(read.tokens[name], values, rtol=1e-6)


def test_masked_tokens_are_left_out_and_the_others_keep_their_places():
    dump = dumps.of_rows([ROW | {"mask": [0, 1, 1]}, ROW | {"mask": [0, 0, 0]}, ROW], "made")
    assert dump.tokens["position"].tolist() == [1, 2, 0, 1, 2]
    assert dump.tokens["row"].tolist() == [0, 0, 1, 1, 1]
    assert dump.tokens["logprob"].tolist() == [-2.0, -0.5, -1.0, -2.0, -0.5]
    assert dump.left_out == 1
    assert dump.responses.length.tolist() == [2, 3]
    assert dump.responses.written.tolist() == [3, 3]


def test_a_number_under_the_mask_may_be_anything():
    dump = dumps.of_rows([ROW | {"entropy": [float("nan"), 0.5, 0.5], "mask": [0, 1, 1]}], "made")
    assert dump.tokens["entropy"].tolist() == [0.5, 0.5]


def test_an_advantage_is_one_number_a_response_or_one_a_token():
    assert dumps.of_rows([ROW], "made").tokens["advantage"].tolist() == [1.0, 1.0, 1.0]
    own = dumps.of_rows([ROW | {"advantage": [1.0, 2.0, 3.0], "mask": [1, 0, 1]}], "made")
    assert own.tokens["advantage"].tolist() == [1.0, 3.0]


def test_names_of_trl_and_verl_are_read(tmp_path):
    verl = {"log_probs": [-1.0], "old_log_probs": [-1.1], "entropys": [0.4], "advantages": [0.5], "response_mask": [1],
            "rollout_log_probs": [-1.2], "uid": "u", "global_steps": 2, "score": 1.0}  # fmt: skip
    trl = {"per_token_logps": [-1.0], "old_per_token_logps": [-1.1], "entropies": [0.4], "advantages": 0.5,
           "sampling_per_token_logps": [-1.2], "completion_mask": [1],
           "completion_ids": [7], "epsilon_low": 0.2}  # fmt: skip
    read = dumps.read(lines(tmp_path / "verl.jsonl", [verl]))
    assert {name: read.tokens[name].tolist() for name in ("logprob", "old_logprob", "sampler_logprob", "entropy")} == {
        "logprob": [-1.0], "old_logprob": [-1.1], "sampler_logprob": [-1.2], "entropy": [0.4]
    }  # fmt: skip
    assert read.responses.iloc[0][["step", "group", "reward"]].tolist() == [2, "u", 1.0]
    read = dumps.read(lines(tmp_path / "trl.jsonl", [trl]))
    assert read.settings == {"clip_low": 0.2}
    assert read.tokens["token_ids"].tolist() == [7]


def test_a_folder_is_read_as_one_dump_in_the_order_of_names(tmp_path):
    dumps.write(tmp_path / "step_2.parquet", [ROW | {"step": 2}])
    dumps.write(tmp_path / "step_1.parquet", [ROW | {"step": 1}])
    (tmp_path / "notes.txt").write_text("x")
    assert dumps.read(tmp_path).responses.step.tolist() == [1, 2]


def test_the_tokens_of_one_step_are_as_if_the_others_were_not_there():
    rows = [row for pair in zip(drawn(1, seed=1), drawn(1, seed=2), strict=True) for row in pair]
    mixed = [row | {"step": 1 + i % 2} for i, row in enumerate(rows)]
    alone = dumps.of_rows(mixed[1::2], "made")
    part = dumps.of_rows(mixed, "made").of_step(2)
    for name, values in alone.tokens.items():
        np.testing.assert_array_equal(part.tokens[name], values)
    assert part.responses.length.tolist() == alone.responses.length.tolist()


BAD = {
    "row 1, entropy: has 2 values and logprob 3; give one a token": ROW | {"entropy": [1.0, 2.0]},
    "row 1, entropy: nan at token 2; leave it out by the mask": ROW | {"entropy": [1.0, float("nan"), 1.0]},
    "row 1, logprob: inf at token 1; leave it out by the mask": ROW | {"logprob": [float("inf"), -1.0, -1.0]},
    "row 1, logprob: 2 at token 2 is above 0; write ln p, not -ln p": ROW | {"logprob": [-1.0, 2.0, -0.5]},
    "row 1, logprob: 'x' is no list; give one value a token": ROW | {"logprob": "x"},
    "row 1, logprob: 'x' is no number; give one a token": ROW | {"logprob": ["x", -1.0, -1.0]},
    "row 1, mask: 2 is neither 0 nor 1; write 1 at the tokens that count": ROW | {"mask": [1, 2, 1]},
    "row 1, mask: has 1 values and logprob 3; give one a token": ROW | {"mask": [1]},
    "row 1, advantage: 'high' is no finite number; write one": ROW | {"advantage": "high"},
    "row 1, reward: 'yes' is no finite number; write one": ROW | {"reward": "yes"},
    "row 1, step: 1.5 is no whole number from 0 on; write one": ROW | {"step": 1.5},
    "row 1, truncated: 'no' is neither true nor false; write one of them": ROW | {"truncated": "no"},
    "no row has a token that counts; check the mask": ROW | {"mask": [0, 0, 0]},
    "has no column logprob or log_prob or log_probs; it has advantage": {"advantage": 1.0},
    "has no column advantage or advantages; it has logprob": {"logprob": [-1.0]},
}


@pytest.mark.parametrize("told", BAD)
def test_a_row_that_does_not_fit_is_told_in_one_line_by_file_row_and_column(tmp_path, told):
    path = lines(tmp_path / "bad.jsonl", [BAD[told]])
    with pytest.raises(SteerError, match=re.escape(told)) as error:
        dumps.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([ROW, without([ROW], "entropy")[0]], "row 1 has entropy, DUMP PATH, row 2 has not; write it in every row"),
        ([ROW, without([ROW], "advantage")[0]], "row 2: advantage is missing; give it in every row"),
        ([ROW | {"clip_low": 0.2}, ROW | {"clip_low": 0.1}], "row 2, clip_low: 0.1 is not the 0.2 of the first row"),
    ],
)
def test_rows_that_do_not_fit_together_are_told(tmp_path, rows, told):
    path = lines(tmp_path / "bad.jsonl", rows)
    with pytest.raises(SteerError, match=re.escape(told.replace("PATH", str(path)))):
        dumps.read(path)


def test_files_that_are_none_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "a.jsonl").write_text('{"logprob": [-1.0]\n')
    (tmp_path / "a.txt").write_text("x")
    for name, told in {
        "missing.jsonl": "is no file or folder",
        "empty": "holds no .parquet or .jsonl file",
        "a.txt": "is none of .parquet, .jsonl",
        "a.parquet": "is not read",
        "a.jsonl": "is not read (line 1",
    }.items():
        with pytest.raises(SteerError, match=re.escape(told)) as error:
            dumps.read(tmp_path / name)
        assert "\n" not in str(error.value)


def test_what_could_not_be_read_is_not_written(tmp_path):
    with pytest.raises(SteerError, match=r"row 2, entropy: has 1 values"):
        dumps.write(tmp_path / "d.parquet", [ROW, ROW | {"entropy": [1.0]}])
    with pytest.raises(SteerError, match="row 1: entropies is no column of a dump"):
        dumps.write(tmp_path / "d.parquet", [ROW | {"entropies": [1.0, 1.0, 1.0]}])
    assert list(tmp_path.iterdir()) == []


VALUES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3)


@given(st.dictionaries(st.sampled_from(list(dumps.COLUMNS)), VALUES | st.lists(VALUES, max_size=4), max_size=8))
def test_any_row_is_read_or_told_in_one_line(row):
    try:
        dump, told = dumps.of_rows([{"logprob": [-1.0, -1.0], "advantage": 0.0} | row], "made"), None
    except SteerError as error:
        dump, told = None, str(error)
    if told is not None:
        assert told.startswith("DUMP made")
        assert "\n" not in told
    else:
        assert len(dump) > 0
        assert all(np.isfinite(dump.tokens[name]).all() for name in ("logprob", "advantage"))
