"""Which sequences go through the model together."""

from __future__ import annotations

from collections.abc import Sequence

from steer_core.common import ranks
from steer_core.policy.score import Layout
from steer_core.policy.sequences import Sequences, prompt_groups


def forward_passes(
    rows: Sequence[int], sequences: Sequences, size: int, tokens: int | None, layout: Layout
) -> list[list[int]]:
    """Rows in forward passes of `size` sequences or, where `tokens` is given, of at most so many tokens.

    By tokens, sequences are sorted by length, but where prompts are shared: there, responses to one prompt stay
    together. Every rank makes as many passes as the others.
    """
    rows = list(rows)
    if tokens is None:
        return [rows[start : start + size] for start in range(0, len(rows), size)]
    masks = (sequences.prompt_mask_BP, sequences.response_mask_BT)
    prompts, responses = (mask.sum(-1).tolist() for mask in masks)
    if layout == "shared":
        groups = prompt_groups(sequences.prompt_ids_BP, sequences.prompt_mask_BP).tolist()
        parts = split_groups(rows, prompts, responses, groups, tokens)
    else:
        parts = split_rows(rows, prompts, responses, tokens, layout == "packed")
    return split_into(parts, ranks.all_reduce_max(len(parts), sequences.response_ids_BT.device))


def split_groups(
    rows: list[int], prompts: list[int], responses: list[int], groups: list[int], tokens: int
) -> list[list[int]]:
    """Rows in micro-batches of at most `tokens` tokens, in their order, where a prompt counts once in each.

    prompts, responses: tokens of every row of the rollout; groups: which prompt it has, neighbours the same. A row that
    is longer than `tokens` goes alone.
    """
    parts: list[list[int]] = []
    held = 0
    for row in rows:
        known = bool(parts) and groups[parts[-1][-1]] == groups[row]
        more = responses[row] + (0 if known else prompts[row])
        if parts and held + more <= tokens:
            parts[-1].append(row)
            held += more
        else:
            parts.append([row])
            held = prompts[row] + responses[row]
    return parts


def split_rows(rows: list[int], prompts: list[int], responses: list[int], tokens: int, packed: bool) -> list[list[int]]:
    """Rows in micro-batches of at most `tokens` tokens, padding included unless packed; longest sequences first.

    prompts, responses: tokens of every row of the rollout. A row that is longer than `tokens` goes alone.
    """
    parts: list[list[int]] = []
    for row in sorted(rows, key=lambda i: (-prompts[i] - responses[i], i)):
        grown = [*parts[-1], row] if parts else [row]
        widest = max(prompts[i] for i in grown) + max(responses[i] for i in grown)
        size = sum(prompts[i] + responses[i] for i in grown) if packed else len(grown) * widest
        if parts and size <= tokens:
            parts[-1] = grown
        else:
            parts.append([row])
    return parts


def split_into(parts: list[list[int]], count: int) -> list[list[int]]:
    """The same rows in exactly `count` micro-batches, not fewer than there are; the largest are halved.

    Ranks that share out gradients or weights must make as many passes as one another.
    """
    parts = list(parts)
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        half = (len(parts[largest]) + 1) // 2
        parts[largest : largest + 1] = [parts[largest][:half], parts[largest][half:]]
    return parts
