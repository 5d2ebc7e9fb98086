"""Files are whole, JSON has no NaN, an error stands on one line."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from steer_core.common.errors import one_line
from steer_core.common.files import json_ready, json_text, written_whole


def test_an_error_is_told_on_one_line_and_cut():
    assert one_line(ValueError("a\n  b\tc ")) == "a b c"
    assert one_line("word " * 100) == ("word " * 100)[:200]
    assert one_line("word " * 100, 7) == "word wo"


@dataclass
class Record:
    values: tuple
    by: dict


def test_json_has_null_for_what_is_not_finite_and_plain_numbers_for_numpys():
    record = Record((np.float32(0.5), float("nan"), np.int64(3)), {1: [float("inf"), "x", None, True]})
    assert json_ready(record) == {"values": [0.5, None, 3], "by": {"1": [None, "x", None, True]}}
    assert json.loads(json_text(record)) == json_ready(record)
    assert json_text({"a": np.nan}, indent=1) == '{\n "a": null\n}\n'


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def torn():
        with written_whole(path) as partial:
            partial.write_text("torn")
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        torn()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"
    with written_whole(path) as partial:
        assert partial.name == ".partial_file"
        partial.write_text("new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]
