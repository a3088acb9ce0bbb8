# SPDX-License-Identifier: Apache-2.0
"""Which rows of a batch share a prefix, how they are packed, and where each token is in the packed sequence.

All rollouts of a prompt repeat its tokens. Rows with equal prompts, equal media and equal positions form a group, and
a group is computed as

    [ prefix | suffix 1 | suffix 2 | ... | suffix G ]

in which a suffix attends to the prefix and, causally, to itself. A causal prefix never attends to a suffix, so each row
gets exactly the numbers it would get alone. A group of one is an ordinary causal row. Neither a prompt's uid nor a
constant group size is used, so lost rollouts, padding rows and single rows need no special case.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def shared_groups(prompts: Sequence[Tensor], media: Sequence[int], positions: Sequence[Tensor]) -> list[list[int]]:
    """Group the rows that share a prefix.

    Args:
        prompts: token ids of each row's prompt. Shape: (P,), int64.
        media: a number for each row's media; equal numbers mean equal media.
        positions: position ids of each row, prompt first. Shape: (..., L), L >= P.

    Returns:
        Groups of row indices, each row once; groups in the order of their first rows, rows in ascending order.

    Raises:
        ValueError: a prompt is empty, so nothing predicts the first token of its response.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, (prompt, medium, places) in enumerate(zip(prompts, media, positions, strict=True)):
        size = len(prompt)
        if size == 0:
            raise ValueError(f"row {row} has an empty prompt: nothing predicts the first token of its response")
        prefix = places[..., :size].contiguous().cpu()
        key = (medium, prompt.contiguous().cpu().numpy().tobytes(), tuple(prefix.shape), prefix.numpy().tobytes())
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def packed_tokens(piece: Sequence[int], prefix: Sequence[int], suffix: Sequence[int]) -> int:
    """Count the tokens of a group's rows with one copy of their prefix.

    Args:
        piece: row indices of one group.
        prefix: prompt length of each row of the batch, tokens.
        suffix: response length of each row of the batch, tokens.
    """
    return prefix[piece[0]] + sum(suffix[row] for row in piece)


def workload(prefix: int, suffixes: Iterable[int]) -> int:
    """Estimate the work of a group, in verl's unit: `24576 x + x²` for a row of x tokens [ours].

    Args:
        prefix: prompt length, tokens; counted once.
        suffixes: response length of each row, tokens.
    """
    return 24576 * prefix + prefix**2 + sum(24576 * size + 2 * prefix * size + size**2 for size in suffixes)


def micro_batches(
    groups: Sequence[Sequence[int]],
    prefix: Sequence[int],
    suffix: Sequence[int],
    budget: int,
    at_least: int = 1,
) -> list[list[list[int]]]:
    """Pack groups into micro-batches; a group is cut only if it does not fit into one.

    Args:
        groups: row indices, each row once.
        prefix: prompt length of each row, tokens.
        suffix: response length of each row, tokens.
        budget: packed tokens that a micro-batch may hold.
        at_least: number of micro-batches to make, so that ranks with less work make as many forward calls as others.

    Returns:
        Micro-batches, each a list of pieces, each a list of row indices of one group.

    Raises:
        ValueError: a single row is larger than the budget, or there are fewer rows than `at_least`.
    """
    pieces = [piece for group in groups for piece in _cut_to_fit(group, prefix, suffix, budget)]
    bins: list[list[list[int]]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=lambda piece: -packed_tokens(piece, prefix, suffix)):  # first fit, decreasing
        need = packed_tokens(piece, prefix, suffix)
        chosen = next((n for n, free in enumerate(room) if need <= free), len(bins))
        if chosen == len(bins):
            bins.append([])
            room.append(budget)
        bins[chosen].append(piece)
        room[chosen] -= need
    while len(bins) < at_least:
        _split_one(bins, prefix, suffix, at_least)
    return bins


def _cut_to_fit(group: Sequence[int], prefix: Sequence[int], suffix: Sequence[int], budget: int) -> list[list[int]]:
    pieces: list[list[int]] = [[]]
    used = size = prefix[group[0]]
    for row in sorted(group, key=lambda row: -suffix[row]):
        if size + suffix[row] > budget:
            raise ValueError(
                f"a row of {size + suffix[row]} tokens is larger than a micro-batch of {budget}: raise "
                "actor.ppo_max_token_len_per_gpu and rollout.log_prob_max_token_len_per_gpu, or shorten the rows"
            )
        if pieces[-1] and used + suffix[row] > budget:
            pieces.append([])
            used = size
        pieces[-1].append(row)
        used += suffix[row]
    return pieces


def _split_one(bins: list[list[list[int]]], prefix: Sequence[int], suffix: Sequence[int], wanted: int) -> None:
    """Split one micro-batch: between two groups if any holds two, otherwise inside a group."""

    def tokens(pieces: list[list[int]]) -> int:
        return sum(packed_tokens(piece, prefix, suffix) for piece in pieces)

    whole = [pieces for pieces in bins if len(pieces) > 1]
    splittable = whole or [pieces for pieces in bins if len(pieces[0]) > 1]
    if not splittable:
        raise ValueError(f"{len(bins)} rows cannot fill {wanted} micro-batches")
    chosen = max(splittable, key=tokens)
    if len(chosen) > 1:
        ordered = sorted(chosen, key=lambda piece: -packed_tokens(piece, prefix, suffix))
        halves: tuple[list[list[int]], list[list[int]]] = ([], [])
        for piece in ordered:
            min(halves, key=tokens).append(piece)
    else:
        rows = chosen[0]
        halves = ([rows[0::2]], [rows[1::2]])
    bins[bins.index(chosen)] = halves[0]
    bins.append(halves[1])


class Segment(NamedTuple):
    """Consecutive packed tokens that attend to a prefix and, causally, to themselves; in tokens."""

    prefix_start: int
    prefix_size: int
    start: int
    size: int


class PrefixPlan:
    """Where each token is in a packed micro-batch.

    Not a dataclass: FSDP1 takes the dataclasses among a module's arguments apart.

    Args:
        groups: row indices of each group, in packed order; together a permutation of the rows.
        prefix: prompt length of each row, tokens; equal within a group.
        lengths: length of each row with its response, tokens.

    Attributes:
        order: row indices in packed order.
        segments: what attends to what.
        tokens: length of the packed sequence.
        predict: packed positions that predict a response token, in packed order of the responses.
            Shape: (sum of response lengths,), int64.
    """

    def __init__(self, groups: Sequence[Sequence[int]], prefix: Sequence[int], lengths: Sequence[int]):
        self.groups = [list(group) for group in groups]
        self.order = [row for group in groups for row in group]
        self.prefix, self.lengths = list(prefix), list(lengths)
        self.segments: list[Segment] = []
        predict, cursor = [torch.empty(0, dtype=torch.int64)], 0
        for group in self.groups:
            start, shared = cursor, prefix[group[0]]
            cursor += shared
            if len(group) > 1:
                self.segments.append(Segment(start, 0, start, shared))
            for row in group:
                size = lengths[row] - shared
                if len(group) > 1 and size:
                    self.segments.append(Segment(start, shared, cursor, size))
                if size:
                    predict += [torch.tensor([start + shared - 1]), torch.arange(cursor, cursor + size - 1)]
                cursor += size
            if len(group) == 1:
                self.segments.append(Segment(start, 0, start, cursor - start))
        self.tokens = cursor
        self.predict = torch.cat(predict)

    def pack(self, rows: Sequence[Tensor]) -> Tensor:
        """Concatenate rows in packed order, with each group's prefix once.

        Args:
            rows: values per token of each row. Shape: (..., L).

        Returns:
            Shape: (..., tokens).
        """
        parts = []
        for group in self.groups:
            parts.append(rows[group[0]][..., : self.prefix[group[0]]])
            parts += [rows[row][..., self.prefix[row] :] for row in group]
        return torch.cat(parts, -1)

    def responses(self, rows: Sequence[Tensor]) -> Tensor:
        """Concatenate the rows' responses in packed order; these are the labels of `predict`.

        Args:
            rows: values per token of each row. Shape: (..., L).

        Returns:
            Shape: (..., sum of response lengths).
        """
        return torch.cat([rows[row][..., self.prefix[row] :] for row in self.order], -1)

    def unpack(self, values: Tensor) -> list[Tensor]:
        """Split predictions into rows, aligned as verl's engine aligns them.

        Args:
            values: one per predicted response token, in packed order. Shape: (sum of response lengths,).

        Returns:
            One tensor for each row in the batch's order, Shape: (L,): at position t the value for token t + 1, and
            zeros where nothing was predicted.
        """
        sizes = [self.lengths[row] - self.prefix[row] for row in self.order]
        rows: list[Tensor] = [values] * len(sizes)
        for row, part in zip(self.order, values.split(sizes), strict=True):
            before = self.prefix[row] - 1 if len(part) else self.prefix[row]
            after = 1 if len(part) else 0
            rows[row] = torch.nn.functional.pad(part, (before, after))
        return rows

    def key_index(self) -> Tensor:
        """Return the packed positions of the keys, segment by segment: a segment's prefix, then the segment itself.

        Returns:
            Shape: (sum of key lengths,), int64.
        """
        parts = []
        for prefix_start, prefix_size, start, size in self.segments:
            parts += [torch.arange(prefix_start, prefix_start + prefix_size), torch.arange(start, start + size)]
        return torch.cat(parts)

    def boundaries(self) -> tuple[Tensor, Tensor]:
        """Return cumulative lengths of query and key segments, as variable-length attention kernels take them.

        Returns:
            (query, key), each of Shape: (segments + 1,), int32, beginning with 0.
        """
        query = torch.tensor([0] + [s.size for s in self.segments]).cumsum(0)
        key = torch.tensor([0] + [s.prefix_size + s.size for s in self.segments]).cumsum(0)
        return query.to(torch.int32), key.to(torch.int32)
