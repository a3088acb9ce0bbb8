# SPDX-License-Identifier: Apache-2.0
"""A variable-length attention kernel in plain torch, with the contract of flash-attn's `flash_attn_varlen_func`."""

import math

import torch
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_boundaries: Tensor,
    key_boundaries: Tensor,
    longest_query: int,
    longest_key: int,
    scaling: float | None = None,
) -> Tensor:
    """Attend within segments, causally with the mask aligned to the bottom right, one segment after another.

    Args:
        q: Shape: (tokens, heads, width).
        k: Shape: (keys, key heads, width); a key head serves heads / key heads consecutive heads.
        v: Shape: (keys, key heads, width).
        query_boundaries: cumulative lengths of the query segments, from 0. Shape: (segments + 1,).
        key_boundaries: the same of the key segments.
        longest_query: tokens of the longest query segment.
        longest_key: keys of the longest key segment.
        scaling: scaling of the scores; 1 / sqrt(width) by default.

    Returns:
        Shape: (tokens, heads, width).
    """
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    wide = torch.promote_types(q.dtype, torch.float32)  # in half precision, scores and sums are float32 as on a GPU
    outputs = []
    for n in range(len(query_boundaries) - 1):
        a, b = int(query_boundaries[n]), int(query_boundaries[n + 1])
        c, d = int(key_boundaries[n]), int(key_boundaries[n + 1])
        assert b - a <= longest_query
        assert d - c <= longest_key
        keys, values = (x[c:d].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhw,khw->hqk", q[a:b].to(wide), keys.to(wide)) * scaling
        hidden = torch.ones(b - a, d - c, dtype=torch.bool).triu(d - c - (b - a) + 1)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1).to(q.dtype)
        outputs.append(torch.einsum("hqk,khw->qhw", weights, values))
    return torch.cat(outputs)
