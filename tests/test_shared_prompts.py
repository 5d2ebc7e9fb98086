"""Rows that hold each prompt once: every statistic and gradient is that of padded rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_policies import random_policy
from small import small_config, small_trainer

from steer_core.policy import sequences as layout
from steer_core.policy.model import Policy, load_policy
from steer_core.policy.score import PLAIN, Scoring, reading, score, tokens_read
from steer_core.policy.sequences import Sequences, prompt_groups, shared_prompts
from steer_core.training.scoring import make_scoring, not_shared

SHARED = Scoring("shared")


def made(groups: list[tuple[int, list[int]]], vocabulary: int = 20, seed: int = 0) -> Sequences:
    """Random sequences: for each (prompt length, response lengths), a prompt and its responses."""
    source = torch.Generator().manual_seed(seed)
    width_P, width_T = max(p for p, _ in groups), max(t for _, lengths in groups for t in lengths)
    rows = []
    for prompt, lengths in groups:
        ids = torch.randint(2, vocabulary, (width_P,), generator=source)
        mask = torch.arange(width_P) >= width_P - prompt
        for length in lengths:
            response = torch.randint(2, vocabulary, (width_T,), generator=source)
            rows.append((ids, mask.long(), response, torch.arange(width_T) < length))
    return Sequences(*(torch.stack(column) for column in zip(*rows, strict=True)))


def exact(policy: Policy) -> Policy:
    policy.model.double()
    return policy


def both(policy: Policy, sequences: Sequences, scoring: Scoring) -> tuple[torch.Tensor, torch.Tensor]:
    """Every statistic at response tokens, and the gradient of a sum that uses log-probs and entropies."""
    policy.model.zero_grad()
    mask = sequences.response_mask_BT
    stats = score(policy.model, sequences, 0.7, scoring)
    slopes = torch.linspace(-1, 1, int(mask.sum()), dtype=stats.entropy.dtype)
    loss = (stats.logprob[mask] * slopes).sum() + (stats.entropy[mask] * slopes**2).sum()
    with reading(policy.model, sequences, scoring.layout):
        loss.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in policy.model.parameters() if weight.grad is not None])
    return torch.stack([value[mask] for value in vars(stats).values()]).detach(), gradient


GROUPS = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=4)), min_size=1, max_size=4
)


@settings(max_examples=25, deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 5))
def test_any_groups_of_any_lengths_give_the_values_and_gradients_of_padded_rows(groups, seed):
    policy, sequences = exact(load_policy("embedded")), made(groups, seed=seed)
    values, gradient = both(policy, sequences, PLAIN)
    mine, own_gradient = both(policy, sequences, SHARED)
    torch.testing.assert_close(mine, values, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "olmo2", "glm4"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_other_architectures_score_and_learn_the_same_with_shared_prompts(kind, recompute):
    policy = random_policy(kind) if recompute else exact(random_policy(kind))
    assert not_shared(policy) is None
    if recompute:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.model.train()
    sequences = made([(5, [7, 1, 12]), (9, [3]), (2, [8, 8])])
    values, gradient = both(policy, sequences, PLAIN)
    mine, own_gradient = both(policy, sequences, SHARED)
    tolerance = 1e-4 if recompute else 1e-8  # float32 where activations are made anew
    torch.testing.assert_close(mine, values, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(own_gradient, gradient, rtol=tolerance, atol=tolerance)


def test_a_prompt_is_read_once_for_neighbours_and_nothing_is_padded():
    sequences = made([(5, [7, 1, 12]), (9, [3])])
    row = shared_prompts(sequences)
    assert row.ids_1L.shape == (1, 5 + 6 + 0 + 11 + 9 + 2)  # a response's last token predicts nothing
    assert row.positions_1L[0].tolist() == [*range(11), *range(5, 16), *range(11)]
    assert tokens_read(sequences, "shared") == (33, 33)
    assert tokens_read(sequences, "padded") == (4 * 21, 3 * 5 + 20 + 9 + 3)
    assert tokens_read(sequences, "packed") == (47, 47)
    apart = sequences.rows([0, 3, 1, 2])
    assert shared_prompts(apart).ids_1L.numel() == 33 + 5  # no neighbours any more


def test_prompts_are_the_same_where_their_tokens_are_whatever_the_padding_holds():
    ids = torch.tensor([[7, 3, 4], [8, 3, 4], [3, 3, 4], [3, 3, 4], [3, 3, 5]])
    mask = torch.tensor([[0, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    assert prompt_groups(ids, mask).tolist() == [0, 0, 1, 1, 2]


def test_a_response_sees_no_other_response_to_its_prompt():
    policy = exact(load_policy("embedded"))
    sequences = made([(6, [9, 9, 9])])
    with torch.no_grad():
        before = score(policy.model, sequences, 1.0, SHARED).logprob
        sequences.response_ids_BT[1] = sequences.response_ids_BT[1].flip(0)
        after = score(policy.model, sequences, 1.0, SHARED).logprob
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize(
    ("policy", "changed", "layout", "why"),
    [
        ("embedded", [], "shared", ""),
        ("embedded", ["optimizer.shared_prompts=none"], "padded", "optimizer.shared_prompts=none"),
        ("embedded", ["optimizer.micro_batch_tokens=64", "optimizer.packing=packed"], "packed", "optimizer.packing"),
        ("gpt_neo", [], "padded", "exchange"),
        ("gemma2", [], "padded", "softcap"),
    ],
)
def test_a_run_shares_prompts_where_the_model_can_and_says_why_where_it_cannot(policy, changed, layout, why):
    own = {"gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}}.get(policy, {})
    found = load_policy("embedded") if policy == "embedded" else random_policy(policy, **own)
    scoring = make_scoring(found, small_config(*changed))
    assert scoring.layout == layout
    assert why in scoring.reason
    assert why in scoring.told()


def test_a_layout_that_lets_responses_see_each_other_is_found_out(monkeypatch):
    right = layout.SharedPrompts.attend

    def leaky(self, number, query, key, value, scaling):
        return right(self, number, query, key, value.roll(1, 2), scaling)

    monkeypatch.setattr(layout.SharedPrompts, "attend", leaky)
    assert "log-probs would change by" in not_shared(load_policy("embedded"))


def test_training_arrives_where_it_does_without_sharing(tmp_path):
    """In float64 three rollouts with shared prompts end at the weights of padded rows, but for rounding."""
    common = ("model.dtype=float64", "train.rollouts=2", "intervention.name=steer", "optimizer.name=sgd")
    ends = {}
    for shared in ("auto", "none"):
        trainer = small_trainer(tmp_path / shared, *common, f"optimizer.shared_prompts={shared}")
        assert trainer.fit()
        ends[shared] = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
        padding = trainer.run.read()[-1]["batch/padding"]
        assert padding == 0 if shared == "auto" else padding > 0
    torch.testing.assert_close(ends["auto"], ends["none"], rtol=1e-7, atol=1e-9)
