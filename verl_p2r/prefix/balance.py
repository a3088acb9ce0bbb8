# SPDX-License-Identifier: Apache-2.0
"""Distribute rows over ranks so that a prompt's rollouts stay together and every rank has about the same work."""

from collections.abc import Callable, Hashable, Sequence

from verl_p2r.prefix.plan import workload


def balanced_order(
    groups: Sequence[Hashable], prefix: Sequence[int], suffix: Sequence[int], ranks: int
) -> tuple[list[int], list[int]]:
    """Order the rows so that equal consecutive chunks, one for each rank, hold whole groups and about the same work.

    The largest group is placed first, on the least loaded rank with room for all of it. Then equally large groups are
    exchanged between the most and the least loaded rank while that helps. A group that fits on no rank is cut.

    Args:
        groups: a key for each row; equal keys share a prompt.
        prefix: prompt length of each row, tokens.
        suffix: response length of each row, tokens.
        ranks: number of chunks.

    Returns:
        (row indices in their new order, the workload of each rank).

    Raises:
        ValueError: the number of rows is not a multiple of the number of ranks.
    """
    if len(groups) % ranks:
        raise ValueError(f"{len(groups)} rows cannot be split equally over {ranks} ranks")
    members: dict[Hashable, list[int]] = {}
    for row, key in enumerate(groups):
        members.setdefault(key, []).append(row)

    def cost(rows: list[int]) -> int:
        return workload(prefix[rows[0]], [suffix[row] for row in rows])

    room = [len(groups) // ranks] * ranks
    load = [0] * ranks
    held: list[list[list[int]]] = [[] for _ in range(ranks)]

    def place(rows: list[int], rank: int) -> None:
        held[rank].append(rows)
        room[rank] -= len(rows)
        load[rank] += cost(rows)

    left = []
    for rows in sorted(members.values(), key=lambda rows: (-len(rows), -cost(rows))):
        fitting = [rank for rank in range(ranks) if room[rank] >= len(rows)]
        if fitting:
            place(rows, min(fitting, key=load.__getitem__))
        else:
            left.append(rows)
    for rows in left:
        while rows:
            rank = max(range(ranks), key=room.__getitem__)
            place(rows[: room[rank]], rank)
            rows = rows[len(held[rank][-1]) :]
    _exchange(held, load, cost)
    return [row for pieces in held for rows in pieces for row in rows], load


def _exchange(held: list[list[list[int]]], load: list[int], cost: Callable[[list[int]], int]) -> None:
    """Exchange pieces with equally many rows between the most and the least loaded rank until no exchange helps."""
    ranks = range(len(held))
    for _ in range(4 * sum(map(len, held))):
        high, low = max(ranks, key=load.__getitem__), min(ranks, key=load.__getitem__)
        gap = load[high] - load[low]
        best = min(
            (
                (abs(gap - 2 * (cost(a) - cost(b))), i, j)
                for i, a in enumerate(held[high])
                for j, b in enumerate(held[low])
                if len(a) == len(b)
            ),
            default=(gap, 0, 0),
        )
        if best[0] >= gap:
            return
        _, i, j = best
        moved = cost(held[high][i]) - cost(held[low][j])
        held[high][i], held[low][j] = held[low][j], held[high][i]
        load[high] -= moved
        load[low] += moved
