# SPDX-License-Identifier: Apache-2.0
"""How busy a client keeps a server."""

from collections.abc import Iterable


def busy_share(calls: Iterable[tuple[float, float]], slots: int) -> float:
    """Return the share of the allowed calls that were in flight, by the server's log.

    It is measured from when all allowed calls are in flight for the first time until the last call begins, and is 1 if
    they were at every moment in between.

    Args:
        calls: start and end of each call, in seconds.
        slots: the most calls in flight.
    """
    spans = sorted(calls)
    first, last = spans[slots - 1][0], spans[-1][0]
    held = sum(max(0.0, min(end, last) - max(start, first)) for start, end in spans)
    return held / (slots * (last - first))
