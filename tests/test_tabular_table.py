"""The table of visited states of a tabular policy: real changes of entropy, and predictions of a real scale."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from steer_core.common.errors import SteerError
from steer_core.formulas import tabular
from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.formulas.loss import ClipRange
from steer_core.formulas.tabular import measured_change, tabular_tokens

ETA = 1e-5


def entropy_of(logits):
    """H of softmax(logits), from its definition alone."""
    return torch.special.entr(torch.softmax(logits, -1)).sum(-1)


def relative_error(predicted, measured):
    return float(np.linalg.norm(predicted - measured) / np.linalg.norm(measured))


@pytest.mark.parametrize("vocabulary", [2, 3, 50, 1000])
def test_the_exact_form_is_the_measured_change_at_any_vocabulary(vocabulary):
    table = tabular_tokens(400, vocabulary, ETA)
    assert relative_error(table["exact"], table["measured"]) < 1e-4
    assert relative_error(table["paper"], table["measured"]) > 1e-2
    assert float(np.abs(table["measured"]).max()) < 10 * ETA  # nats of the step, not of unit step


def test_measured_change_is_that_of_the_softmax_recomputed_after_the_step():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(50, 30, generator=generator, dtype=torch.float64)
    labels = torch.randint(30, (50,), generator=generator)
    slopes = torch.randn(50, generator=generator, dtype=torch.float64)
    slopes[0], before = 0, logits.clone()
    change = measured_change(logits, labels, slopes, 0.1)
    onehot = torch.nn.functional.one_hot(labels, 30)
    moved = logits + 0.1 * slopes[:, None] * (onehot - logits.softmax(-1))
    torch.testing.assert_close(change, entropy_of(moved) - entropy_of(logits), rtol=0, atol=1e-13)
    assert change[0] == 0
    assert torch.equal(logits, before)


def test_the_table_holds_both_signs_stopped_tokens_and_every_form():
    table = tabular_tokens(2000, 20, ETA)
    assert set(table) == {*ENTROPY_CHANGE, "logprob", "entropy", "advantage", "group", "measured"}
    assert table["group"].tolist() == list(range(2000))
    assert 0.4 < (table["advantage"] > 0).mean() < 0.6
    stopped = table["exact"] == 0
    assert 0.005 < stopped.mean() < 0.05
    assert not table["measured"][stopped].any()
    assert (table["measured"][~stopped] != 0).all()
    assert not (tabular_tokens(2000, 20, ETA, clip=ClipRange(1.0, math.inf, None))["exact"] == 0).any()
    assert table["entropy"].between(0, math.log(20)).all()
    frequency, probability = table["logprob"].lt(math.log(0.2)).mean(), np.exp(table["logprob"])
    assert 0.2 < frequency < 0.6
    assert probability.mean() > 0.25  # tokens are sampled from the policy: a uniform draw would give 1 / 20


def test_the_same_seed_gives_the_same_table_and_another_another():
    pd.testing.assert_frame_equal(tabular_tokens(30, 7, ETA, 3), tabular_tokens(30, 7, ETA, 3), check_exact=True)
    assert not np.allclose(tabular_tokens(30, 7, ETA, 3)["entropy"], tabular_tokens(30, 7, ETA, 4)["entropy"])


def test_states_made_in_chunks_are_measured_as_well(monkeypatch):
    monkeypatch.setattr(tabular, "_CHUNK_ELEMENTS", 7 * 50)
    table = tabular_tokens(100, 50, ETA)
    assert len(table) == 100
    assert table["entropy"].nunique() == 100
    assert relative_error(table["exact"], table["measured"]) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 10, ETA), "states: 1 is below 2"),
        ((10, 1, ETA), "vocabulary: 1 is below 2"),
        ((10, 10, 0.0), "eta: 0.0 is not above 0"),
        ((10, 10, -1.0), "eta: -1.0 is not above 0"),
        ((10, 10, math.nan), "eta: nan is not above 0"),
        ((10, 10, math.inf), "eta: inf is not above 0 and finite"),
    ],
)
def test_sizes_below_two_and_step_sizes_that_are_not_above_zero_are_refused(arguments, message):
    with pytest.raises(SteerError, match=message):
        tabular_tokens(*arguments)
