# SPDX-License-Identifier: Apache-2.0
"""PA-GRPO's advantages: each process is compared within its own group; each token gets its segment's advantage."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from verl_p2r.segments import segment_masks

_BLOCK_TOKENS = 2**18


@torch.no_grad()
def pa_grpo_advantages(
    perception_rewards: Tensor,
    reasoning_rewards: Tensor,
    perception_length: Tensor,
    response_mask: Tensor,
    group_ids: Sequence[Hashable] | Any,
    *,
    norm_by_std: bool = True,
    epsilon: float = 1e-6,
    separate: bool = True,
    perception_valid: Tensor | None = None,
    segment_weighting: Literal["token", "segment"] = "token",
    cross_credit: float = 0.0,
) -> Tensor:
    """Give each generated token the group-relative advantage of its process.

    A_{i,k} = (R_{i,k} − mean_j R_{j,k}) / (std_j R_{j,k} + ε),  k ∈ {P, R}      (arXiv 2511.11113, Eq. 6)

    where j runs over the responses to the same question; every token of segment k of response i gets A_{i,k}. With
    `cross_credit` λ, tokens of P get A_{i,P} + λ A_{i,R} `[ours]`.

    Args:
        perception_rewards: R_P. Shape (bs,), any real dtype; converted to float32.
        reasoning_rewards: R_R. Shape (bs,), any real dtype; converted to float32.
        perception_length: Shape (bs,), integer, tokens. Positions before it belong to P (`segments.segment_masks`).
        response_mask: Shape (bs, L), bool or 0/1; non-zero on generated tokens. The result is on its device.
        group_ids: Shape (bs,), a sequence or array of hashables; equal ids form a group.
        norm_by_std: Divide by the standard deviation; False keeps the difference from the mean (Dr. GRPO).
        epsilon: ε, added to the unbiased standard deviation, as in verl's GRPO `[ours]`.
        separate: False gives every token A computed from R_P + R_R (the paper's "no separation").
        perception_valid: Shape (bs,), bool; False where the judge gave no verdict. None: every row has one.
        segment_weighting: "token" leaves A unchanged. "segment" scales it by T / 2T_k, where T_k is the row's number of
            tokens in segment k and T their sum, so that both segments have equal weight in a token-mean loss (the sum
            over k in Eq. 7). A row with an empty segment keeps weight 1 `[ours]`.
        cross_credit: λ, at least 0; 0 is the paper's. The answer depends on the observation, so A_R also carries
            information about tokens of P, most of all when the judge errs. A row without a verdict gets λ A_R on P
            `[ours]`.

    Returns:
        Shape (bs, L), float32; 0 wherever `response_mask` is 0.

        A group whose rewards are all equal has an advantage of exactly 0. A group of one has mean 0 and standard
        deviation 1, as in verl `[ours]`. Rows without a verdict are excluded from the statistics that use R_P and get 0
        from them; if that leaves fewer than two rows of a larger group, the whole group gets 0 `[ours]`.

    Raises:
        ValueError: Shapes do not match, a reward is not finite (even in a row without a verdict; the message names the
            row `[ours]`), `segment_weighting` is unknown, or `cross_credit` is negative, not finite, or set although
            `separate` is False.

    >>> pa_grpo_advantages(
    ...     torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([1, 2]),
    ...     torch.tensor([[1, 1, 1], [1, 1, 0]]), ["question", "question"], norm_by_std=False,
    ... ).tolist()
    [[0.5, -1.0, -1.0], [-0.5, -0.5, 0.0]]
    """
    if response_mask.ndim != 2:
        raise ValueError(f"expected response_mask of shape (bs, L), got {tuple(response_mask.shape)}")
    if segment_weighting not in ("token", "segment"):
        raise ValueError(f'segment_weighting must be "token" or "segment", got {segment_weighting!r}')
    if not (math.isfinite(cross_credit) and cross_credit >= 0):
        raise ValueError(f"cross_credit must be finite and at least 0, got {cross_credit}")
    if cross_credit and not separate:
        raise ValueError(
            f"cross_credit is {cross_credit} with separate=False, which has one advantage: set one of both"
        )
    device, rows = response_mask.device, response_mask.shape[0]
    everyone = torch.ones(rows, dtype=torch.bool, device=device)
    perception = _checked("perception_rewards", perception_rewards, rows, finite=True).to(device, torch.float32)
    reasoning = _checked("reasoning_rewards", reasoning_rewards, rows, finite=True).to(device, torch.float32)
    length = _checked("perception_length", perception_length, rows).to(device)
    judged = everyone
    if perception_valid is not None:
        judged = _checked("perception_valid", perception_valid, rows).to(device, torch.bool)
    groups, count = _group_numbers(group_ids, rows, device)

    def relative(rewards: Tensor, valid: Tensor) -> Tensor:
        return _group_relative(rewards, valid, groups, count, epsilon if norm_by_std else None)

    if separate:
        perception, reasoning = relative(perception, judged), relative(reasoning, everyone)
        if cross_credit:
            perception = perception + cross_credit * reasoning
    else:
        perception = reasoning = relative(perception + reasoning, judged)
    if segment_weighting == "segment":
        perception, reasoning = _equal_segment_weights(perception, reasoning, *segment_masks(length, response_mask))
    return _spread(perception, reasoning, length, response_mask)


def _checked(name: str, values: Tensor, rows: int, finite: bool = False) -> Tensor:
    values = torch.as_tensor(values)
    if values.shape != (rows,):
        raise ValueError(f"expected {name} of shape ({rows},), to match response_mask, got {tuple(values.shape)}")
    if finite:
        values = values.float()
        if not torch.isfinite(values).all():
            row = int(torch.isfinite(values).logical_not().nonzero()[0])
            raise ValueError(f"{name}[{row}] is {values[row].item()}: a reward must be a finite float32")
    return values


def _group_numbers(group_ids: Sequence[Hashable] | Any, rows: int, device: torch.device) -> tuple[Tensor, int]:
    """Number the groups 0, 1, … in order of appearance; return each row's number, of shape (bs,), and their count."""
    # Tensors hash by identity, and numpy scalars hash slowly: convert both to Python values first.
    ids = group_ids.tolist() if hasattr(group_ids, "tolist") else list(group_ids)
    if not isinstance(ids, list) or len(ids) != rows:
        raise ValueError(f"expected group_ids of shape ({rows},), to match response_mask, got {group_ids!r:.80}")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(ids))}
    return torch.tensor(list(map(numbers.__getitem__, ids)), dtype=torch.int64, device=device), len(numbers)


def _group_relative(rewards: Tensor, valid: Tensor, groups: Tensor, count: int, epsilon: float | None) -> Tensor:
    """Normalise float32 rewards of shape (bs,) within their groups (Eq. 6); without division if `epsilon` is None."""

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(count).index_add_(0, groups, values)

    # Relative to the group's lowest reward, equal rewards are exactly 0, and so is everything computed from them.
    # Otherwise rounding could separate them from their mean, and dividing by a tiny deviation would amplify that.
    lowest = rewards.new_full((count,), torch.inf).scatter_reduce_(0, groups, rewards.where(valid, torch.inf), "amin")
    height = (rewards - lowest[groups]).where(valid, 0.0)
    judged = total(valid.to(rewards.dtype))
    centred = (height - (total(height) / judged.clamp_min(1.0))[groups]).where(valid, 0.0)
    deviation = (total(centred.square()) / (judged - 1.0).clamp_min(1.0)).sqrt()

    alone = total(torch.ones_like(rewards)) == 1.0
    centred = torch.where(alone[groups] & valid, rewards, centred)
    return centred if epsilon is None else centred / (deviation.masked_fill(alone, 1.0)[groups] + epsilon)


def _equal_segment_weights(
    perception: Tensor, reasoning: Tensor, in_perception: Tensor, in_reasoning: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale both advantages of each row, of shape (bs,), by T / 2T_k if both segments have tokens."""
    perception_tokens, reasoning_tokens = in_perception.sum(dim=1).float(), in_reasoning.sum(dim=1).float()
    both = (perception_tokens > 0) & (reasoning_tokens > 0)
    tokens = perception_tokens + reasoning_tokens
    return (
        torch.where(both, perception * tokens / (2.0 * perception_tokens), perception),
        torch.where(both, reasoning * tokens / (2.0 * reasoning_tokens), reasoning),
    )


def _spread(perception: Tensor, reasoning: Tensor, length: Tensor, response_mask: Tensor) -> Tensor:
    """Write each row's two advantages, of shape (bs,), onto the tokens of its segments: shape (bs, L), float32."""
    advantages = perception.new_zeros(response_mask.shape)
    # Memory traffic is the whole cost on a CPU, so masks are made in blocks that fit into its cache.
    rows = (
        max(_BLOCK_TOKENS // max(response_mask.shape[1], 1), 1) if advantages.device.type == "cpu" else len(advantages)
    )
    parts = (advantages, length, response_mask, perception.unsqueeze(1), reasoning.unsqueeze(1))
    for out, tokens, mask, of_perception, of_reasoning in zip(
        *(part.split(max(rows, 1)) for part in parts), strict=True
    ):
        in_perception, in_reasoning = segment_masks(tokens, mask)
        torch.where(in_reasoning, of_reasoning, out, out=out)
        torch.where(in_perception, of_perception, out, out=out)
    return advantages
