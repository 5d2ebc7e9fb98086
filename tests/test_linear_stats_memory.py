"""Statistics from hidden states: what they hold in memory, and what they refuse."""

import math

import pytest
import torch
from linear_cases import COLUMNS, ROWS, case
from storages import Storages

from steer_core.formulas import linear_stats
from steer_core.formulas.linear_stats import linear_token_stats
from steer_core.formulas.token_stats import IGNORED_LABEL


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(linear_stats, "BLOCKS", {"cpu": (ROWS, COLUMNS)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_nothing_made_is_larger_than_a_block_or_an_operand_each_way(monkeypatch, dtype, softcap):
    monkeypatch.setattr(linear_stats, "BLOCKS", {"cpu": (16, 32)})
    tensors, _ = case(64, 512, width=8, dtype=dtype)
    hidden, weight = (x.requires_grad_() for x in tensors[:2])
    block, states, matrix = 4 * 16 * 32, 4 * 64 * 8, 512 * 8 * dtype.itemsize
    with Storages() as storages:
        stats = linear_token_stats(hidden, weight, tensors[2], 0.7, softcap=softcap)
    assert max(storages.made) <= max(block, states)  # of 64 * 512 * 4 bytes of logits
    with Storages() as storages:
        (stats.logprob + stats.entropy).sum().backward()
    assert sorted(size for size in storages.made if size > max(block, states)) == [matrix]  # its gradient


def test_memory_kept_for_the_backward_pass_grows_with_rows_alone_unless_logits_are_kept(monkeypatch):
    monkeypatch.setattr(linear_stats, "BLOCKS", {"cpu": (16, 32)})
    (hidden, weight, labels), _ = case(64, 512)
    given = {x.untyped_storage().data_ptr() for x in (hidden, weight, labels)}
    for keep_logits, most in ((False, 64 * 4 * 8), (True, 64 * 512 * 4 + 64 * 4 * 8)):
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: k.update({id(t): t}) or t, lambda t: t):
            linear_token_stats(hidden.requires_grad_(), weight, labels, keep_logits=keep_logits)
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept.values()}
        assert most // 4 < sum(size for place, size in sizes.items() if place not in given) <= most
    with Storages() as storages, torch.no_grad():
        linear_token_stats(hidden, weight, labels, keep_logits=True)
    assert max(storages.made) < 64 * 512 * 4  # nothing to keep them for


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_ND": torch.zeros(2, 1, 4)}, "hidden: shape"),
        ({"hidden_ND": torch.zeros(2, 4, dtype=torch.long)}, "hidden: dtype"),
        ({"weight_VD": torch.zeros(3, 5)}, "weight: shape"),
        ({"weight_VD": torch.zeros(3)}, "weight: shape"),
        ({"weight_VD": torch.zeros(0, 4)}, "weight: shape"),
        ({"weight_VD": torch.zeros(3, 4).double()}, "weight: dtype"),
        ({"labels_N": torch.tensor([0, 1, 2])}, "labels: shape"),
        ({"labels_N": torch.tensor([0, 3])}, "labels: a label lies outside"),
        ({"labels_N": torch.tensor([0, -1])}, "labels: a label lies outside"),
        ({"labels_N": torch.tensor([-101, IGNORED_LABEL])}, "labels: a label lies outside"),
        ({"labels_N": torch.zeros(2, dtype=torch.long, device="meta")}, "labels: on meta"),
        ({"bias_V": torch.zeros(4)}, "bias: shape"),
        ({"bias_V": torch.zeros(3).double()}, "bias: dtype"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"softcap": 0.0}, "softcap"),
        ({"softcap": -30.0}, "softcap"),
        ({"scale": 0.0}, "scale"),
    ],
)
def test_bad_input_raises(changes, message):
    given = {"hidden_ND": torch.zeros(2, 4), "weight_VD": torch.zeros(3, 4), "labels_N": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        linear_token_stats(**given | changes)
