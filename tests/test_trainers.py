"""Which method works in which trainer: the page's table is the code's, and its lines for TRL run as pasted."""

import re
from pathlib import Path

import pytest
import torch

from steer_core.formulas.token_stats import TokenStats
from steer_core.integrations.support import (
    NotToldError,
    as_verl_tells,
    reads_old_entropy,
    refusal_in_trl,
    refusal_in_verl,
    trainer_table,
)
from steer_core.interventions import METHODS, intervention

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
WHOLE, OTHERS = BLOCKS
ARGUMENT = re.compile(r"intervention=.*(?=,\n\)\.train\(\))")
LINES = [line.split("  # ")[0] for line in OTHERS.splitlines()]


def test_the_pages_table_is_the_codes():
    (shown,) = re.findall(r"<!-- methods by trainer -->\n(.*?)\n<!-- end -->", PAGE, flags=re.DOTALL)
    assert shown == trainer_table(), "put what `python -m steer_core.integrations.support` prints between the markers"


def test_the_table_has_every_method_and_says_why_not():
    rows = [line.strip("| ").split(" | ") for line in trainer_table().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"`{name}`" for name in METHODS]
    for name, ours, *others in rows:
        method = intervention({"name": name.strip("`")})
        assert ours == "yes"
        for cell, reason in zip(others, (refusal_in_trl(method), refusal_in_verl(method)), strict=True):
            assert cell == ("yes" if reason is None else f"no: {reason.split(';')[0]}")


@pytest.mark.parametrize(
    ("settings", "reads"),
    [
        ({"name": "erc"}, True),
        ({"name": "steer", "form": "released"}, True),
        ({"name": "steer"}, False),
        ({"name": "kl-cov"}, False),
        ({"name": "clip-cov", "low": -9.0, "high": 9.0}, False),
        ({"name": "ce-gppo"}, False),
    ],
)
def test_what_a_method_reads_is_found_by_trying_it(settings, reads):
    assert reads_old_entropy(intervention(settings)) is reads


def test_reading_what_verl_does_not_tell_is_an_error_with_the_reason():
    values = torch.zeros(3)
    old = as_verl_tells(TokenStats(values, values, values, values), "erc")
    assert torch.equal(old.logprob, values)
    with pytest.raises(NotToldError, match=r"erc reads the entropies of the policy that sampled, .*; train with"):
        _ = old.entropy


@pytest.mark.slow
@pytest.mark.parametrize("line", [ARGUMENT.search(WHOLE)[0], *LINES])
def test_the_pages_lines_for_trl_train_as_pasted(line, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    (tmp_path / "steer_core").symlink_to(ROOT / "steer_core")
    monkeypatch.chdir(tmp_path)
    exec(ARGUMENT.sub(lambda _: line, WHOLE), {})
    assert (tmp_path / "runs" / "trl" / "checkpoint-1" / "intervention.json").is_file()
