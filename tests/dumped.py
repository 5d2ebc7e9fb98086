"""Dumps made by hand: tokens drawn from known distributions, so that every entropy of them is known exactly."""

from collections.abc import Callable

import numpy as np

VOCABULARY = 30


def drawn(
    steps: int = 2,
    groups: int = 4,
    responses: int = 4,
    seed: int = 0,
    sharpness: Callable[[int], float] = lambda step: 1.0,
    drift: float = 0.0,
    **extra,
) -> list[dict]:
    """Rows whose tokens are drawn from softmax distributions over VOCABULARY words; `entropy` is Shannon's, in nats.

    sharpness: by step, what logits are multiplied by. drift: the size of a random change of logits since the draw, so
    that log-probs and entropies are those of another policy than the one that sampled.
    """
    random, rows = np.random.default_rng(seed), []
    for step in range(1, steps + 1):
        for group in range(groups):
            for sample in range(responses):
                length = int(random.integers(6, 30))
                spread = random.uniform(0.5, 4, size=(length, 1))
                old = random.normal(size=(length, VOCABULARY)) * spread * sharpness(step)
                new = old + drift * random.normal(size=old.shape)
                ids = np.array([random.choice(VOCABULARY, p=p) for p in softmax(old)])
                right = float((sample + group) % 2)
                rows.append(
                    {
                        "step": step,
                        "group": f"{step}.{group}",
                        "logprob": log_softmax(new)[np.arange(length), ids].tolist(),
                        "old_logprob": log_softmax(old)[np.arange(length), ids].tolist(),
                        "entropy": shannon(new).tolist(),
                        "advantage": 2 * right - 1,
                        "reward": right,
                        "token_ids": ids.tolist(),
                        "truncated": False,
                        "clip_low": 0.2,
                        "clip_high": 0.28,
                        "max_tokens": 40,
                        "vocabulary": VOCABULARY,
                        **extra,
                    }
                )
    return rows


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    below = logits - logits.max(-1, keepdims=True)
    return below - np.log(np.exp(below).sum(-1, keepdims=True))


def shannon(logits: np.ndarray) -> np.ndarray:
    return -(softmax(logits) * log_softmax(logits)).sum(-1)


def changed(rows: list[dict], name: str, function: Callable[[dict], object]) -> list[dict]:
    """The rows with a column made anew of each."""
    return [row | {name: function(row)} for row in rows]


def without(rows: list[dict], *names: str) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]
