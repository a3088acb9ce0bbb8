# SPDX-License-Identifier: Apache-2.0
"""M-RoPE positions by hand: one loop over tokens, time as an exact fraction. The reference of several tests."""

from fractions import Fraction
from math import floor

Part = int | tuple[int, int, int, Fraction]
"""A number of text tokens, or a medium: temporal grids, height and width in merged patches, positions per grid."""


def true_positions(parts: list[Part]) -> list[tuple[int, int, int]]:
    """(time, height, width) of each token: a medium's from where it starts, text one behind the largest so far."""
    positions: list[tuple[int, int, int]] = []
    for part in parts:
        start = 1 + max((max(p) for p in positions), default=-1)
        if isinstance(part, int):
            positions += [(start + i,) * 3 for i in range(part)]
        else:
            t, h, w, step = part
            positions += [
                (start + floor(i * step), start + y, start + x) for i in range(t) for y in range(h) for x in range(w)
            ]
    return positions


def ids_of(parts: list[Part], kinds: str, *, image: int, video: int, text: int = 5) -> list[int]:
    """Token ids for `parts`; `kinds` says "i" or "v" for each medium in turn."""
    kind, ids = iter(kinds), []
    for part in parts:
        if isinstance(part, int):
            ids += [text] * part
        else:
            ids += [image if next(kind) == "i" else video] * (part[0] * part[1] * part[2])
    return ids
