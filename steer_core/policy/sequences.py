"""Prompts and responses as padded tensors, and as one row that holds each prompt once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Sequences:
    """Prompts padded on the left and responses padded on the right.

    The masks are 1 (or True) at tokens; the end-of-sequence token is part of the response.
    """

    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    response_ids_BT: Tensor
    response_mask_BT: Tensor

    def rows(self, rows: slice | list[int]) -> Sequences:
        """Some of the sequences, without the columns that are padding in all of them."""
        prompt_mask, response_mask = self.prompt_mask_BP[rows], self.response_mask_BT[rows]
        first = int(prompt_mask.any(0).int().argmax())
        width = max(int(response_mask.sum(-1).max()), 1)
        return Sequences(
            self.prompt_ids_BP[rows, first:],
            prompt_mask[:, first:],
            self.response_ids_BT[rows, :width],
            response_mask[:, :width],
        )


def prompt_groups(ids_BP: Tensor, mask_BP: Tensor) -> Tensor:
    """Which prompt each row has, (B,), from 0 on: neighbours with the same prompt share a number."""
    ids_BP = ids_BP.masked_fill(~mask_BP.bool(), -1)
    changes_B = torch.zeros(len(ids_BP), dtype=torch.long, device=ids_BP.device)
    changes_B[1:] = (ids_BP[1:] != ids_BP[:-1]).any(-1)
    return changes_B.cumsum(0)


@dataclass(frozen=True)
class SharedPrompts:
    """Sequences in one row without padding: each prompt once and, behind it, the responses to it, one after another.

    Neighbours with the same prompt share it. A response's last token predicts nothing and is left out.

    ids_1L, positions_1L: the tokens, and where each stands in its own sequence. prompt_at_RP, response_at_BT: where
    the tokens of each prompt and each response lie in the row, padded on the right; seen_RP, fed_BT: True at tokens.
    group_B: which prompt a response has. predicts_N: which token of the row predicts each of the N response tokens,
    sequence by sequence.
    """

    ids_1L: Tensor
    positions_1L: Tensor
    prompt_at_RP: Tensor
    seen_RP: Tensor
    response_at_BT: Tensor
    fed_BT: Tensor
    group_B: Tensor
    predicts_N: Tensor

    @cached_property
    def _mask_B1TK(self) -> Tensor:
        """True where a token of a response sees one of its prompt, or of itself up to there."""
        (rows, width), device = self.response_at_BT.shape, self.response_at_BT.device
        at = torch.arange(width, device=device)
        prompt = self.seen_RP[self.group_B][:, None, :].expand(-1, width, -1)
        return torch.cat([prompt, (at[:, None] >= at).expand(rows, -1, -1)], -1)[:, None]

    @cached_property
    def _read_X(self) -> Tensor:
        return torch.cat([self.prompt_at_RP.flatten(), self.response_at_BT.flatten()])

    @cached_property
    def _back_L(self) -> Tensor:
        """Where each token of the row lies among what is read by prompts and responses."""
        back = torch.zeros_like(self.ids_1L[0])
        order = torch.arange(len(self._read_X), device=back.device)
        real = torch.cat([self.seen_RP.flatten(), self.fed_BT.flatten()])
        back[self._read_X[real]] = order[real]
        return back

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention (`attention.Attend`): a prompt sees itself, a response its prompt and itself."""
        times = query.shape[1] // key.shape[1]  # kernels for a mask take no groups of queries that share keys
        key, value = (x.repeat_interleave(times, 1) if times > 1 else x for x in (key, value))
        (p_query, query), (p_key, key), (p_value, value) = (self._split(x) for x in (query, key, value))
        of_prompts = scaled_dot_product_attention(p_query, p_key, p_value, is_causal=True, scale=scaling)
        key, value = (torch.cat([p[self.group_B], own], 2) for p, own in ((p_key, key), (p_value, value)))
        of_responses = scaled_dot_product_attention(query, key, value, self._mask_B1TK, scale=scaling)
        parts = [x.transpose(0, 1).flatten(1, 2) for x in (of_prompts, of_responses)]
        return torch.cat(parts, 1)[:, self._back_L][None]

    def _split(self, x_1HLd: Tensor) -> tuple[Tensor, Tensor]:
        """The part of prompts (R, H, P, d) and that of responses (B, H, T, d)."""
        read = x_1HLd[0][:, self._read_X]
        shapes = self.prompt_at_RP.shape, self.response_at_BT.shape
        parts = read.split([self.prompt_at_RP.numel(), self.response_at_BT.numel()], 1)
        prompts, responses = (
            part.unflatten(1, shape).transpose(0, 1) for part, shape in zip(parts, shapes, strict=True)
        )
        return prompts, responses


def shared_prompts(sequences: Sequences) -> SharedPrompts:
    """Sequences laid out with each prompt once."""
    prompt_mask_BP, response_mask_BT = sequences.prompt_mask_BP.bool(), sequences.response_mask_BT.bool()
    device, group_B = response_mask_BT.device, prompt_groups(sequences.prompt_ids_BP, prompt_mask_BP)
    leads_B = torch.ones_like(group_B, dtype=torch.bool)
    leads_B[1:] = group_B[1:] != group_B[:-1]
    fed_B, prompt_B = (response_mask_BT.sum(-1) - 1).clamp_min(0), prompt_mask_BP.sum(-1)
    at_T, at_P = (torch.arange(int(counts.max()), device=device) for counts in (fed_B, prompt_B))
    fed_BT = at_T < fed_B[:, None]
    taken_BL = torch.cat([prompt_mask_BP & leads_B[:, None], fed_BT], 1)
    ids_BL = torch.cat([sequences.prompt_ids_BP, sequences.response_ids_BT[:, : len(at_T)]], 1)
    positions_BL = torch.cat([prompt_mask_BP.cumsum(-1) - 1, prompt_B[:, None] + at_T], 1)

    end_B = taken_BL.sum(-1).cumsum(0)
    response_B = end_B - fed_B  # where a response begins in the row
    prompt_R, first_R = prompt_B[leads_B], (response_B - prompt_B)[leads_B]
    seen_RP = at_P < prompt_R[:, None]
    to_T = torch.arange(response_mask_BT.shape[1], device=device)
    predicts_BT = torch.where(to_T == 0, (first_R + prompt_R)[group_B][:, None], response_B[:, None] + to_T) - 1
    return SharedPrompts(
        ids_1L=ids_BL[taken_BL][None],
        positions_1L=positions_BL[taken_BL][None],
        prompt_at_RP=(first_R[:, None] + at_P) * seen_RP,
        seen_RP=seen_RP,
        response_at_BT=(response_B[:, None] + at_T) * fed_BT,
        fed_BT=fed_BT,
        group_B=group_B,
        predicts_N=predicts_BT[response_mask_BT],
    )
