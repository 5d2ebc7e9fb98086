"""reproduce/coin_table.py: the gradient against autograd, and what each side of the clip does to entropy."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import coin_table as script

from steer_core.formulas.loss import ClipRange, clipped_surrogate

STATES = 1500
BASE = 3 * torch.randn(STATES, script.VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def changes(optimizer, rate):
    return {name: script.change_by_noise(BASE, clip, optimizer, rate, 1) for name, clip in script.CLIPS.items()}


def is_above_zero(gaps):
    return gaps.mean() > 4 * gaps.std() / len(gaps) ** 0.5


def test_the_gradient_is_autograds_of_the_clipped_surrogate():
    generator, clip = torch.Generator().manual_seed(3), ClipRange(0.2, 0.5, None)
    tokens = torch.multinomial(BASE.softmax(-1), 8, replacement=True, generator=generator)
    old = BASE.softmax(-1).gather(1, tokens) * (0.4 * torch.randn(tokens.shape, generator=generator)).exp()
    advantages = torch.randn(tokens.shape, generator=generator, dtype=torch.float64)
    logits = BASE.clone().requires_grad_()
    logprob = logits.log_softmax(-1).gather(1, tokens)
    clipped_surrogate(logprob, old.log(), advantages, clip).mean(-1).sum().backward()
    found = script.surrogate_gradient(BASE, tokens, old, advantages, clip)
    assert found.abs().max() > 0.1
    assert torch.allclose(found, -logits.grad, atol=1e-12)


def test_the_low_side_raises_entropy_and_the_high_side_lowers_it_in_small_plain_steps():
    found = changes("sgd", 0.1)
    symmetric = found["symmetric, 0.2 / 0.2"]
    assert is_above_zero(found["tight low, 0.05 / 0.2"] - symmetric)
    assert is_above_zero(symmetric - found["tight high, 0.2 / 0.05"])
    assert is_above_zero(found["high, 0.2 / 0.5"] - symmetric)


def test_the_order_turns_round_in_large_steps():
    found = changes("sgd", 1.0)
    assert is_above_zero(found["tight high, 0.2 / 0.05"] - found["tight low, 0.05 / 0.2"])
    assert is_above_zero(found["symmetric, 0.2 / 0.2"] - found["no clip"])


def test_a_clip_that_no_ratio_reaches_changes_nothing():
    found = changes("adamw", 0.003)
    assert torch.equal(found["symmetric, 0.2 / 0.2"], found["no clip"])
    assert found["no clip"].abs().min() == 0  # a state whose eight coins agree
    assert found["no clip"].abs().max() > 0


def test_a_slice_writes_its_rows_and_a_page_that_names_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "RATES", {"sgd": (0.1,), "adamw": (0.01,)})
    monkeypatch.setattr(sys, "argv", ["reproduce/coin_table.py", "--states", "50", "--out", str(tmp_path)])
    script.main()
    rows = pd.read_csv(tmp_path / "coin_table.csv")
    assert len(rows) == len(script.SPREADS) * 2 * len(script.CLIPS)
    assert (rows[rows["clip"].str.startswith("symmetric")].difference_mean == 0).all()
    gaps = rows.change_mean - rows.groupby(["spread", "optimizer"])["change_mean"].transform("first")
    assert rows.difference_mean.tolist() == pytest.approx(gaps.tolist(), abs=3e-6)
    assert f"`python reproduce/coin_table.py --states 50 --out {tmp_path}`" in (tmp_path / "coin_table.md").read_text()


def test_what_the_kept_page_says_in_words_is_in_its_rows():
    rows = pd.read_csv(script.RESULTS / "coin_table.csv")
    assert script.READING in (script.RESULTS / "coin_table.md").read_text()
    signs = {
        ("sgd", 0.1): {"tight low": 1, "tight high": -1, "high,": 1, "no clip": 1},
        ("sgd", 1.0): {"tight low": -1, "tight high": 1, "no clip": -1},
        ("adamw", 0.01): {"tight low": 1},
        ("adamw", 0.03): {"tight low": 1, "tight high": 1, "no clip": -1},
        ("adamw", 0.1): {"no clip": -1},
    }
    for (optimizer, rate), expected in signs.items():
        for start, sign in expected.items():
            part = rows[(rows.optimizer == optimizer) & (rows.rate == rate) & rows["clip"].str.startswith(start)]
            assert len(part) == len(script.SPREADS)
            assert (part.difference_low * sign > 0).all()
            assert (part.difference_high * sign > 0).all()
    symmetric = rows[rows["clip"].str.startswith("symmetric")]
    for case in (("sgd", 0.1), ("adamw", 0.003)):
        assert (symmetric[(symmetric.optimizer == case[0]) & (symmetric.rate == case[1])].change_high < 0).all()
    unmoved = rows[(rows.optimizer == "adamw") & (rows.rate == 0.003)]
    assert (unmoved.difference_mean == 0).all()
