# SPDX-License-Identifier: Apache-2.0
"""The account of what a step leaves out: one line a record in `rejects.jsonl`, and counts by reason.

`verl_p2r.data.rejects` does the same for the rows of a run, which are numbered and screened at every start. Here
records stream by once, and their number is not known before the end.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from verl_p2r.data.reading import DAMAGE
from verl_p2r.data.rows import RowError

SHOWN = 5  # how many rejects are kept for the summary


@dataclass(frozen=True)
class Reject:
    """A record that is left out.

    Args:
        file, line: where a person finds it; lines count from 1, and a record stands where it starts.
        record: its `problem_id`, if it could be read.
        field: the field at fault.
        reason: a short name, the same for all records of one kind.
        message: what is wrong, and what to do about it.
    """

    file: str
    line: int
    record: str | None
    field: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class RejectLog:
    """Rejects on their way to a JSON-lines file, which exists only if there are any. A context manager.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons: Counter[str] = Counter()
        self.first: list[Reject] = []
        self._file: TextIO | None = None

    def __enter__(self) -> "RejectLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, file: str, line: int, record: str | None, error: RowError) -> None:
        """Leave a record out, because of an error."""
        reject = Reject(file, line, record, error.field, error.reason, _shortened(error.problem))
        self.reasons[reject.reason] += 1
        if len(self.first) < SHOWN:
            self.first.append(reject)
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8")
        self._file.write(json.dumps(asdict(reject)) + "\n")  # ASCII: what is not Unicode text can be listed too

    @property
    def total(self) -> int:
        return self.reasons.total()

    @property
    def damaged(self) -> bool:
        """Whether a file was damaged: how many records it has lost nobody knows."""
        return self.reasons[DAMAGE] > 0


def _shortened(message: str) -> str:
    """A message that quotes a long value, without the middle of it: the remedy stands at the end."""
    return message if len(message) <= 600 else f"{message[:400]} … {message[-180:]}"
