"""Short runs of every method, advantage, reduction and way to cut a step give the numbers that were recorded before.

The record, `fixtures/recorded_runs.json`, was made by `record_runs.py` before the package's files were moved; a run
that changes on purpose is recorded anew. On the processor and versions of the record, weights and logs are compared
bit for bit; elsewhere a rounding may differ, and the numbers are compared.
"""

import json
from pathlib import Path

import pytest
from record_runs import plain, train

from steer_core.common.environment import environment

RECORD = json.loads((Path(__file__).parent / "fixtures" / "recorded_runs.json").read_text())


def same_machine() -> bool:
    now, then = environment(), RECORD["environment"]
    versions = [{name: one["packages"][name] for name in ("torch", "transformers")} for one in (now, then)]
    return now["processor"] == then["processor"] and versions[0] == versions[1]


@pytest.mark.parametrize("name", plain())
def test_a_short_run_gives_the_recorded_numbers(name, tmp_path):
    found, kept = train(plain()[name], tmp_path / "run"), RECORD["runs"][name]
    if same_machine():
        assert found == kept
        return
    assert found["last"] == pytest.approx(kept["last"], rel=1e-3, abs=1e-6)
    assert found["length"] == pytest.approx(kept["length"], rel=1e-6)
    assert found["last"].keys() == kept["last"].keys()


def test_every_run_of_the_record_can_be_made_again():
    from record_runs import RANKS, ZERO

    zero = {f"{name}, {ranks} ranks" for name in ZERO for ranks in (1, 2)}
    assert RECORD["runs"].keys() == plain().keys() | RANKS.keys() | zero
