# SPDX-License-Identifier: Apache-2.0
"""Records that a step leaves out: one line each in a JSON-lines file, and counts by reason.

    rejects.jsonl   could not be read, or failed: where the record stands, and why
    dropped.jsonl   judged not to go on: the whole record, and why

`verl_p2r.data.rejects` does the same for the rows of a run, whose number is known from the start. Records are read in
one pass, and their number is known at the end.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from verl_p2r.data.errors import RowError
from verl_p2r.data.reading import DAMAGE, RawRecord
from verl_p2r.data.record import Record
from verl_p2r.data.values import is_unset, shown

REJECTS, DROPPED = "rejects.jsonl", "dropped.jsonl"
FIRST = 5  # rejects kept for the summary

L = TypeVar("L", bound="LineLog")

_LONGEST_ID = 80  # characters of a `problem_id` in the list of rejects


class Dropped(RowError):
    """A record that is left out because of what it says, not because something is wrong with it."""


@dataclass(frozen=True)
class RejectedRecord:
    """A record that is left out because something is wrong with it.

    Args:
        file: file of the record.
        line: line on which the record begins, from 1.
        record: its `problem_id`, if that could be read.
        field: the wrong field.
        reason: a short name, the same for all records with this fault.
        message: what is wrong, and what to do about it.
        identity: `Record.identity` in hexadecimal; None where no record could be read.
    """

    file: str
    line: int
    record: str | None
    field: str
    reason: str
    message: str
    identity: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class LineLog:
    """A JSON-lines file that exists only once it has a line. A context manager.

    Args:
        path: path of the file.

    Attributes:
        reasons: number of lines by reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons: Counter[str] = Counter()
        self._file: TextIO | None = None

    def __enter__(self: L) -> L:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def total(self) -> int:
        """Number of lines."""
        return self.reasons.total()

    def _write(self, reason: str, line: str) -> None:
        self.reasons[reason] += 1
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8")
        self._file.write(line + "\n")


class RejectLog(LineLog):
    """The list of rejected records.

    Args:
        path: path of the file.

    Attributes:
        first: the first rejects, at most `FIRST`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.first: list[RejectedRecord] = []

    @property
    def damaged(self) -> bool:
        """Whether a file was damaged, so that an unknown number of records is lost."""
        return self.reasons[DAMAGE] > 0

    def add(self, reject: RejectedRecord) -> None:
        """List a rejected record."""
        if len(self.first) < FIRST:
            self.first.append(reject)
        self._write(reject.reason, json.dumps(asdict(reject)))  # ASCII can show text that is not Unicode


class DropLog(LineLog):
    """The list of dropped records."""

    def add(self, reason: str, line: str) -> None:
        """List a dropped record.

        Args:
            reason: the reason.
            line: the record, from `dropped_line`.
        """
        self._write(reason, line)


def rejected(record: Record, error: RowError) -> RejectedRecord:
    """Describe a record that is rejected."""
    named = record.problem_id[:_LONGEST_ID]
    return RejectedRecord(record.file, record.line, named, *_described(error), record.identity.hex())


def rejected_value(raw: RawRecord, error: RowError) -> RejectedRecord:
    """Describe a value that is not a valid record."""
    named = raw.value.get("problem_id") if isinstance(raw.value, Mapping) else None
    if not isinstance(named, str):
        named = None if is_unset(named) else shown(named, _LONGEST_ID)
    return RejectedRecord(raw.file, raw.line, (named or "")[:_LONGEST_ID] or None, *_described(error))


def dropped_line(step: str, record: Record, why: Dropped) -> str:
    """Return a dropped record as JSON, with the step and the reason.

    Args:
        step: name of the step that drops it.
        record: the record.
        why: the reason.
    """
    dropped = {"step": step, "reason": why.reason, "message": why.problem, "identity": record.identity.hex()}
    return json.dumps({**record.to_json(), "dropped": dropped}, ensure_ascii=False)


def _described(error: RowError) -> tuple[str, str, str]:
    """Return field, reason and message of an error. A long message loses its middle, because the remedy is last."""
    message = error.problem
    return error.field, error.reason, message if len(message) <= 600 else f"{message[:400]} … {message[-180:]}"
