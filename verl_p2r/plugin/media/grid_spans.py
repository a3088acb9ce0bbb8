# SPDX-License-Identifier: Apache-2.0
"""Temporal grids in the token ids of a prompt that has a timestamp before each of them."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

_TIMESTAMP = re.compile(r"<\d+\.\d seconds>$")
_LOOK_BACK = 32  # tokens before the first grid in which a timestamp is looked for


def has_timestamps(token_ids: Sequence[int], pad: int, tokenizer: Any) -> bool:
    """Check whether a timestamp precedes the first video placeholder and its `<|vision_start|>`.

    Args:
        token_ids: the prompt.
        pad: id of the video placeholder.
        tokenizer: tokenizer of the model.
    """
    first = token_ids.index(pad) if pad in token_ids else 0
    before = token_ids[max(first - 1 - _LOOK_BACK, 0) : max(first - 1, 0)]
    return _TIMESTAMP.search(tokenizer.decode(before)) is not None


def cut_out_videos(
    token_ids: Sequence[int], expansions: Sequence[Sequence[int]], pad: int
) -> tuple[list[int], list[list[int]]]:
    """Replace each video of a prompt by one placeholder.

    Args:
        token_ids: the prompt; each grid is `<|vision_start|>`, one placeholder or more, `<|vision_end|>`.
        expansions: what vLLM would write for each video; only the numbers of its grids and placeholders are used.
        pad: id of the video placeholder.

    Returns:
        The prompt with one placeholder from the start of each video's first grid to the end of its last; and for each
        video the tokens that stood there, each grid with all its placeholders.

    Raises:
        ValueError: the prompt does not have as many grids as the videos.
    """
    runs = _runs_of(pad, token_ids)
    grids = [len(_runs_of(pad, expansion)) for expansion in expansions]
    if sum(grids) != len(runs):
        raise ValueError(
            f"the prompt holds {len(runs)} temporal grids of video, but its videos have {grids}: the trainer's "
            "processor and the rollout's must sample and resize alike"
        )
    prompt, spans, done = [], [], 0
    for expansion, count in zip(expansions, grids, strict=True):
        ours, runs = runs[:count], runs[count:]
        size = expansion.count(pad) // count
        span, inside = [], ours[0][0] - 1
        prompt += [*token_ids[done:inside], pad]
        for start, stop in ours:
            span += [*token_ids[inside:start], *[pad] * size]
            inside = stop
        done = inside + 1
        spans.append([*span, token_ids[inside]])
    return [*prompt, *token_ids[done:]], spans


def _runs_of(token: int, token_ids: Sequence[int]) -> list[tuple[int, int]]:
    """First and one past the last position of each run of a token."""
    runs, cursor = [], 0
    for is_token, run in groupby(token_ids, key=token.__eq__):
        length = len(list(run))
        if is_token:
            runs.append((cursor, cursor + length))
        cursor += length
    return runs
