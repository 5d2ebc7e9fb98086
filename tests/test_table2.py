"""Table 2: every cell is what the check finds, and the check notices a cell that is wrong."""

import copy
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from steer_core.common.errors import SteerError
from steer_core.interventions.base import Intervention

SCRIPT = Path(__file__).parent.parent / "reproduce" / "table2.py"
TABLE2 = runpy.run_path(str(SCRIPT))
DATA = TABLE2["load"]()
CELLS = [(method, factor) for method in TABLE2["METHODS"] for factor in TABLE2["FACTORS"]]


@pytest.fixture(scope="module")
def found():
    return TABLE2["check"](DATA)


def test_the_script_prints_the_table_and_says_that_every_checked_cell_holds():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(CELLS)} of {len(CELLS)} checked cells hold" in done.stdout
    for row in DATA["methods"].values():
        assert row["label"] in done.stdout
        assert row["source"] in done.stdout
        assert row.get("unchecked", "") in done.stdout


@pytest.mark.parametrize(("method", "factor"), CELLS)
def test_flipping_a_cell_makes_the_check_name_it(found, method, factor):
    flipped = copy.deepcopy(DATA)
    flipped["methods"][method]["touched"][factor] ^= True
    assert TABLE2["disagreements"](DATA, found) == []
    (wrong,) = TABLE2["disagreements"](flipped, found)
    assert wrong.startswith(f"{method}, {factor}: ")


def test_a_wrong_table_ends_the_script_with_1_and_the_cells_name(tmp_path):
    wrong = copy.deepcopy(DATA)
    wrong["methods"]["w-reinforce"]["touched"]["entropy"] = True
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(wrong))
    done = subprocess.run([sys.executable, SCRIPT, "--data", path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: w-reinforce, entropy: the table says touched, the check not touched" in done.stderr


def test_plain_grpo_departs_from_itself_in_no_factor():
    for factor in TABLE2["FACTORS"]:
        assert not TABLE2["responds"](Intervention(), factor)


@pytest.mark.parametrize("factor", TABLE2["FACTORS"])
def test_one_factor_of_one_token_is_changed_and_nothing_else(factor):
    new, log_ratio, advantages = TABLE2["batch"]()
    for stats, old, changed_advantages in TABLE2["perturbed"](factor, 7):
        same = {
            "clipping": torch.isclose(stats.logprob - old.logprob, log_ratio),
            "advantage": changed_advantages == advantages,
            "probability": stats.logprob == new.logprob,
            "entropy": stats.entropy == new.entropy,
        }
        for name, equal in same.items():
            others = equal[torch.arange(len(equal)) != 7]
            assert others.all(), name
            assert bool(equal[7]) == (name != factor), name


def test_a_method_without_intervention_or_reason_and_a_missing_factor_are_refused_by_name(tmp_path):
    path = tmp_path / "table.yaml"
    for change, message in (
        ({"new-method": {"touched": {}}}, "methods.new-method: no method"),
        ({"steer": {"touched": {"clipping": True}}}, "methods.steer.touched: .* give true or false to clipping"),
    ):
        path.write_text(yaml.safe_dump({"methods": change}))
        with pytest.raises(SteerError, match=message):
            TABLE2["load"](path)
