"""Micro-batches by tokens, packing, logits some rows at a time, and random numbers that belong to a prompt."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from small import small_trainer

from steer_core.common.errors import SteerError
from steer_core.policy import head
from steer_core.policy.micro_batches import forward_passes, split_groups, split_into, split_rows
from steer_core.policy.score import PACKED, PLAIN, Scoring, score, tokens_read
from steer_core.policy.sequences import Sequences
from steer_core.rollout.huggingface import HuggingFaceSampler
from steer_core.training.batch import MicroBatch, padding

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60)), min_size=1, max_size=24)


def size(part, lengths, packed):
    prompts, responses = zip(*(lengths[i] for i in part), strict=True)
    return sum(prompts) + sum(responses) if packed else len(part) * (max(prompts) + max(responses))


@given(lengths=LENGTHS, tokens=st.integers(1, 200), packed=st.booleans(), more=st.integers(0, 30))
def test_every_row_is_in_one_micro_batch_and_none_is_over_its_tokens_but_a_row_alone(lengths, tokens, packed, more):
    rows = list(range(len(lengths)))
    prompts, responses = (list(values) for values in zip(*lengths, strict=True))
    parts = split_rows(rows, prompts, responses, tokens, packed)
    assert sorted(row for part in parts for row in part) == rows
    assert all(len(part) == 1 or size(part, lengths, packed) <= tokens for part in parts)
    for left, right in pairwise(parts):
        assert size([*left, right[0]], lengths, packed) > tokens  # or the row would have gone there
        assert min(sum(lengths[i]) for i in left) >= max(sum(lengths[i]) for i in right)
    count = min(len(rows), len(parts) + more)
    split = split_into(parts, count)
    assert len(split) == count
    assert all(split)
    assert sorted(row for part in split for row in part) == rows


@given(lengths=LENGTHS, tokens=st.integers(1, 200), sizes=st.lists(st.integers(1, 5), min_size=24, max_size=24))
def test_shared_prompts_count_once_in_a_micro_batch_and_rows_keep_their_order(lengths, tokens, sizes):
    groups = [group for group, size in enumerate(sizes) for _ in range(size)][: len(lengths)]
    prompts, responses = (list(values) for values in zip(*lengths, strict=True))
    prompts = [prompts[groups.index(group)] for group in groups]

    def read(part):
        return sum(responses[i] for i in part) + sum({groups[i]: prompts[i] for i in part}.values())

    parts = split_groups(list(range(len(lengths))), prompts, responses, groups, tokens)
    assert [row for part in parts for row in part] == list(range(len(lengths)))
    assert all(len(part) == 1 or read(part) <= tokens for part in parts)
    assert all(read([*left, right[0]]) > tokens for left, right in pairwise(parts))


def test_by_tokens_responses_to_a_prompt_stay_together_where_it_is_shared_and_are_sorted_elsewhere():
    part = held([3, 3, 3, 2, 2, 2], [9, 1, 5, 4, 8, 2]).sequences
    part.prompt_ids_BP[3:] += 1
    assert forward_passes(range(6), part, 8, 18, "shared") == [[0, 1, 2], [3, 4, 5]]  # 3 + 15 and 2 + 14
    assert forward_passes(range(6), part, 8, 18, "packed") == [[0], [4, 2], [3, 1, 5]]
    assert forward_passes(range(6), part, 4, None, "shared") == [[0, 1, 2, 3], [4, 5]]


def held(prompts, responses):
    """A micro-batch of rows with so many prompt and response tokens, padded to the widest."""
    masks = [torch.arange(max(lengths)) < torch.tensor(lengths)[:, None] for lengths in (prompts, responses)]
    prompt_mask, response_mask = masks[0].flip(1), masks[1]
    sequences = Sequences(prompt_mask.long(), prompt_mask, response_mask.long(), response_mask)
    return MicroBatch(sequences, None, None, None)


def test_padding_is_the_share_of_places_without_a_token_and_packed_there_are_none():
    batches = [[held([3, 1], [4, 2])], [held([2], [3]), held([1, 2], [1, 1])]]  # 10 of 14, 5 of 5, 5 of 6
    assert padding(batches) == pytest.approx(5 / 25)
    assert padding([batches[1][:1]]) == 0
    assert padding(batches, PACKED) == 0


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return small_trainer(tmp_path_factory.mktemp("exact") / "run", "model.dtype=float64", "rollout.draws=prompt")


@pytest.fixture(scope="module")
def rollout(trainer):
    prompts = [problem.prompt for problem in trainer.problems_of(1)]
    return trainer.sampler.generate(prompts, 4, trainer.config.rollout, 3)


def scored(trainer, rollout, scoring):
    """Every statistic at the response tokens, and the gradient of a sum that uses log-probs and entropies."""
    trainer.model.zero_grad()
    mask = rollout.response_mask_BT.bool()
    stats = score(trainer.model, rollout, 0.7, scoring)
    slopes = torch.linspace(-1, 1, int(mask.sum()), dtype=torch.float64)
    ((stats.logprob[mask] * slopes).sum() + (stats.entropy[mask] * slopes**2).sum()).backward()
    gradient = torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()])
    return torch.stack([value[mask] for value in vars(stats).values()]).detach(), gradient


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
@pytest.mark.parametrize("read", [True, False], ids=["head read", "model's own"])
@pytest.mark.parametrize("at_once", [1 << 25, 200, 1])
def test_no_layout_and_no_budget_of_logits_changes_a_value_or_a_gradient(
    trainer, rollout, monkeypatch, layout, read, at_once
):
    values, gradient = scored(trainer, rollout, PLAIN)
    asked, whole = [], head.logits_of
    monkeypatch.setattr(head, "logits_of", lambda model, hidden: asked.append(len(hidden)) or whole(model, hidden))
    kept, linear = [], head.linear_token_stats
    monkeypatch.setattr(
        head, "linear_token_stats", lambda *a, keep_logits, **k: kept.append(keep_logits) or linear(*a, **k)
    )
    settings = head.HeadSettings(head.read_head(trainer.model) if read else None, "", at_once)
    asked.clear()  # of reading the head
    mine, own_gradient = scored(trainer, rollout, Scoring(layout, settings))
    torch.testing.assert_close(mine, values, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-9, atol=1e-11)
    tokens, whole_at_once = values.shape[1], at_once == 1 << 25
    if read:
        assert not asked
        assert kept == [whole_at_once]
        return
    assert max(asked) <= max(1, at_once // trainer.model.config.vocab_size)
    assert sum(asked) == (1 if whole_at_once else 2) * tokens  # once forward, once backward where they were dropped


def test_with_draws_by_prompt_neither_batches_nor_company_change_a_response(trainer, rollout):
    prompts = [problem.prompt for problem in trainer.problems_of(1)]
    config = replace(trainer.config.rollout, batch_sequences=3)
    assert trainer.sampler.generate(prompts, 4, config, 3).texts == rollout.texts
    alone = trainer.sampler.generate(prompts[2:], 4, config, 3, places=[2, 3])
    assert alone.texts == rollout.texts[8:]
    assert trainer.sampler.generate(prompts, 4, config, 4).texts != rollout.texts
    assert trainer.sampler.generate(prompts[2:], 4, config, 3, places=[0, 1]).texts != rollout.texts[8:]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.5, 0.7)])
def test_draws_by_prompt_sample_the_tempered_nucleus(trainer, temperature, top_p):
    prompt, count = trainer.problems[0].prompt, 3000
    config = replace(trainer.config.rollout, max_new_tokens=1, temperature=temperature, top_p=top_p)
    rollout = HuggingFaceSampler(trainer.policy, "prompt").generate([prompt], count, config, 0)
    encoded = trainer.policy.tokenizer([prompt], return_tensors="pt", add_special_tokens=False)["input_ids"]
    p = (trainer.model(encoded).logits[0, -1].detach() / temperature).softmax(-1).numpy()
    order = np.argsort(-p)
    kept = order[np.concatenate([[True], np.cumsum(p[order])[:-1] < top_p])]
    expected = np.zeros_like(p)
    expected[kept] = p[kept] / p[kept].sum()
    seen = np.bincount(rollout.response_ids_BT[:, 0].numpy(), minlength=len(p))
    assert seen[expected == 0].sum() == 0
    common = expected * count >= 5
    rest = [np.array([values[~common].sum()]) for values in (seen, expected * count)]
    observed, wanted = (np.concatenate([v[common], r]) for v, r in zip((seen, expected * count), rest, strict=True))
    keep = wanted > 0
    assert scipy_stats.chisquare(observed[keep], wanted[keep] * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_a_rollout_that_returns_nothing_ends_the_run_with_the_remedy_and_nothing_is_lost(tmp_path):
    trainer = small_trainer(tmp_path / "run", "train.checkpoint_every=1", "evaluation.every=0")
    generate = trainer.sampler.generate

    def spoilt(*args):
        made = generate(*args)
        if trainer.finished == 2:
            made.response_mask_BT[5] = False
        return made

    trainer.sampler.generate = spoilt
    with pytest.raises(SteerError, match=r"rollout 3: .* response without a token; .*max_new_tokens .*--resume"):
        trainer.fit()
    assert [path.name for path in trainer.run.checkpoints.saved()] == ["step_000001", "step_000002"]
    trainer.sampler.generate = generate
    trainer.resume()
    assert trainer.fit()


def test_the_best_checkpoint_stays_beside_the_last(tmp_path, monkeypatch):
    settings = ("train.rollouts=6", "train.checkpoint_every=1", "train.checkpoints_kept=2", "evaluation.every=2")
    trainer = small_trainer(tmp_path / "run", *settings)
    scores = {2: 0.5, 4: 0.25, 6: 0.125}
    monkeypatch.setattr(trainer, "evaluate", lambda step: {"evaluation/pass@1": scores[step]})
    trainer.fit()
    assert [path.name for path in trainer.run.checkpoints.saved()] == ["step_000002", "step_000005", "step_000006"]


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("padded", ["optimizer.packing=none", "optimizer.shared_prompts=none"]),
        ("packed", ["optimizer.packing=packed"]),
        ("shared", []),
    ],
)
def test_scoring_keeps_to_the_token_budget_and_says_the_same(tmp_path, monkeypatch, layout, settings):
    plain = small_trainer(tmp_path / "plain")
    rollout = plain.sampler.generate([p.prompt for p in plain.problems[:4]], 4, plain.config.rollout, 1)
    expected = plain.score_rollout(rollout)
    evaluated = plain.evaluate(1)
    asked = []

    def spy(model, sequences, temperature, scoring):
        read, _ = tokens_read(sequences, scoring.layout)
        asked.append((read, scoring.layout))
        return score(model, sequences, temperature, scoring)

    monkeypatch.setattr("steer_core.training.batch.score", spy)
    monkeypatch.setattr("steer_core.evaluation.held_out.score", spy)
    trainer = small_trainer(tmp_path / "budget", "optimizer.micro_batch_tokens=128", *settings)
    found = trainer.score_rollout(rollout)
    mask = rollout.response_mask_BT.bool()
    for name, values in vars(expected).items():
        torch.testing.assert_close(vars(found)[name][mask], values[mask], rtol=1e-5, atol=1e-6)
    scored = len(asked)
    assert trainer.evaluate(1)["evaluation/policy_entropy"] == pytest.approx(evaluated["evaluation/policy_entropy"])
    assert 1 < scored < len(asked)
    assert all(size <= 128 and mine == layout for size, mine in asked)
