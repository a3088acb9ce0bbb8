# SPDX-License-Identifier: Apache-2.0
"""Draws the records that a page shows, evenly over problem types, kept and dropped."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappush, heappushpop
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data_tools.look.cards import STATES, Card, state_of
from data_tools.records.files import Records, files_of
from data_tools.records.history import history_of
from data_tools.records.left_out import DROPPED, RejectLog
from data_tools.steps.run import OnBytes
from verl_p2r.accuracy import problem_types
from verl_p2r.data.record import Record


@dataclass(frozen=True)
class Selection:
    """Records drawn from files.

    Args:
        cards: the drawn records, in the order of the page.
        totals: problem type and state → number of records in the files.
        history: earlier steps.
        files: files that were read.
        seed: seed of the draw.
    """

    cards: Sequence[Card]
    totals: Counter[tuple[str, str]]
    history: Sequence[Mapping[str, Any]] = ()
    files: Sequence[Path] = ()
    seed: int = 0

    @classmethod
    def draw(
        cls,
        sources: Sequence[Sequence[Path]],
        count: int,
        seed: int,
        rejects: RejectLog,
        on_bytes: OnBytes = lambda count: None,
    ) -> "Selection":
        """Read files and draw from them; memory holds the drawn records and 32 bytes for each other one.

        Args:
            sources: from `sources_of`.
            count: number of records to draw.
            seed: seed of the draw; the same seed draws the same records, whatever their order.
            rejects: log of the records that cannot be read.
            on_bytes: called as the files are read.

        Edge rules [ours]:
            Each problem type gets an equal share, half of it kept and half of it dropped records; what one of them
            cannot fill goes to the others. A record in several sources counts once, in the version of the first.
        """
        totals: Counter[tuple[str, str]] = Counter()
        drawn: dict[tuple[str, str], list[tuple[int, int, Card]]] = {}
        for number, record in enumerate(_distinct(sources, rejects, on_bytes)):
            stratum = record.problem_type, state_of(record)
            totals[stratum] += 1
            rank = -int.from_bytes(
                blake2b(record.identity, digest_size=8, salt=seed.to_bytes(8, "big")).digest(), "big"
            )
            heap = drawn.setdefault(stratum, [])  # the lowest hashes, the highest of them on top
            if len(heap) < count:
                heappush(heap, (rank, -number, Card.of(record)))
            elif rank > heap[0][0]:
                heappushpop(heap, (rank, -number, Card.of(record)))
        strata = [
            [card for *_, card in sorted(drawn.get((kind, state), []), reverse=True)]
            for kind in problem_types()
            for state in STATES
        ]
        cards = [card for turn in zip_longest(*strata) for card in turn if card is not None][:count]
        files = [file for source in sources for file in source]
        return cls(cards, totals, history_of(files), files, seed)


def sources_of(inputs: Iterable[str | Path]) -> list[list[Path]]:
    """Find the files of each input; for a step's folder also the list of the records it dropped.

    Returns:
        The files by input, the input that came through the most steps first.

    Raises:
        ValueError: an input does not exist, or is a folder without records.
    """
    sources = []
    for path in map(Path, inputs):
        dropped = [path / DROPPED] if (path / DROPPED).is_file() else []
        sources.append([*sorted(path.glob("part-*.jsonl")), *dropped] if dropped else files_of([path]))
    return sorted(sources, key=lambda files: -len(history_of(files)))


def _distinct(sources: Sequence[Sequence[Path]], rejects: RejectLog, on_bytes: OnBytes) -> Iterator[Record]:
    """Yield each record once, whichever source and step it is from."""
    seen: set[bytes] = set()
    for files in sources:
        for record in Records(files, rejects, on_bytes):
            if record.identity not in seen:
                seen.add(record.identity)
                yield record
