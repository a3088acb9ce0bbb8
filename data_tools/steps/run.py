# SPDX-License-Identifier: Apache-2.0
"""What all steps share: records in, records out, and an account of the rest in a folder (`records.folders`)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.records.files import Records, line_of, write_lines
from data_tools.records.folders import whole_folder, write_manifest
from data_tools.records.left_out import (
    DROPPED,
    REJECTS,
    DropLog,
    Dropped,
    RejectedRecord,
    RejectLog,
    dropped_line,
    rejected,
)
from verl_p2r.data.errors import RowError
from verl_p2r.data.reading import read_values
from verl_p2r.data.record import Record

OnRecord = Callable[[bool], object]
"""Called once a record, for a progress bar, with whether the record goes on."""

OnBytes = Callable[[int], object]
"""Called with the number of bytes read since the last call."""

Outcome = tuple[Record, RowError | None]
"""A record after a step, and why it does not go on; None when it does."""

Transform = Callable[[Iterable[Record]], Iterator[Outcome]]
"""What a step does: takes records and yields the outcome of each, in order."""


@dataclass(frozen=True)
class StepReport:
    """What a step has done.

    Args:
        step: name of the step.
        read: number of records read.
        written: number of records that go on.
        dropped: number of dropped records by reason, the most frequent reason first.
        rejected: number of rejected records by reason, likewise.
        first: the first rejected records.
        failed: more than `max_reject_share` were rejected, a file was damaged, or no record goes on.
    """

    step: str
    read: int
    written: int
    dropped: Mapping[str, int]
    rejected: Mapping[str, int]
    first: tuple[RejectedRecord, ...]
    failed: bool


def count_records(files: Sequence[Path]) -> int:
    """Count the JSON values in files, for a progress bar; whether each is a valid record is not checked."""
    return sum(map(_count, files))


def _count(file: Path) -> int:
    with file.open("rb") as raw:
        if raw.read(1) == b"{":  # JSON lines: counting lines takes a twentieth of the time of parsing them
            raw.seek(0)
            return sum(line != b"\n" for line in raw)
    return sum(1 for _ in read_values(file))


def run_step(
    step: str,
    files: Sequence[Path],
    folder: Path,
    transform: Transform,
    *,
    settings: Mapping[str, Any],
    max_reject_share: float,
    on_bytes: OnBytes = lambda count: None,
) -> StepReport:
    """Put the records of some files through a step.

    Args:
        step: name of the step.
        files: files of records, see `records.files.files_of`.
        folder: output folder; an earlier output is replaced.
        transform: what the step does.
        settings: settings to note in the manifest.
        max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        on_bytes: called as the files are read.

    Raises:
        ValueError: the folder cannot be used, or another process is writing it.
    """
    with whole_folder(folder, files) as partial:
        return write_step(
            step,
            files,
            partial,
            transform,
            settings=settings,
            max_reject_share=max_reject_share,
            on_bytes=on_bytes,
        )


def write_step(
    step: str,
    files: Sequence[Path],
    partial: Path,
    transform: Transform,
    *,
    settings: Mapping[str, Any],
    max_reject_share: float,
    on_bytes: OnBytes = lambda count: None,
) -> StepReport:
    """Do the same as `run_step` in a folder that `folders.whole_folder` provides."""
    with StepWriter(step, files, partial, on_bytes) as writer:
        settled = (settle(step, *outcome) for outcome in transform(writer.source))
        return writer.write(settled, settings, max_reject_share)


class Settled(NamedTuple):
    """What is written of a record: exactly one of a line, a dropped line and a reject.

    Args:
        problem_id: id of the record; empty if it could not be read.
        line: the record as JSON, if it goes on.
        dropped: reason and line, if it is dropped.
        reject: if it is rejected.
    """

    problem_id: str
    line: str | None = None
    dropped: tuple[str, str] | None = None
    reject: RejectedRecord | None = None


def settle(step: str, record: Record, why: RowError | None) -> Settled:
    """Turn the outcome of a record into what is written of it."""
    if isinstance(why, Dropped):
        return Settled(record.problem_id, dropped=(why.reason, dropped_line(step, record, why)))
    if why is not None:
        return Settled(record.problem_id, reject=rejected(record, why))
    return Settled(record.problem_id, line_of(record))


class StepWriter:
    """Writes the output of a step into a folder. A context manager.

    Args:
        step: name of the step.
        files: files of records.
        folder: the folder.
        on_bytes: called as the files are read.

    Attributes:
        source: the records of the files.
    """

    def __init__(self, step: str, files: Sequence[Path], folder: Path, on_bytes: OnBytes = lambda count: None) -> None:
        self.step, self.files, self.folder = step, files, folder
        self.rejects, self.drops = RejectLog(folder / REJECTS), DropLog(folder / DROPPED)
        self.source = Records(files, self.rejects, on_bytes)

    def __enter__(self) -> "StepWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.rejects.__exit__(*error)
        self.drops.__exit__(*error)

    def write(self, settled: Iterable[Settled], settings: Mapping[str, Any], max_reject_share: float) -> StepReport:
        """Write all records and the manifest.

        Args:
            settled: what is written of each record, in order.
            settings: settings to note in the manifest.
            max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        """
        written = write_lines(self.folder, self._lines(settled))
        read, total = self.source.read, self.rejects.total
        report = StepReport(
            self.step,
            read,
            written,
            dict(self.drops.reasons.most_common()),
            dict(self.rejects.reasons.most_common()),
            tuple(self.rejects.first),
            self.rejects.damaged or not written or total > max_reject_share * read,
        )
        write_manifest(
            self.folder,
            self.step,
            self.files,
            read=read,
            written=written,
            rejects=self.rejects,
            dropped=report.dropped,
            failed=report.failed,
            settings={**settings, "max_reject_share": max_reject_share},
        )
        return report

    def _lines(self, settled: Iterable[Settled]) -> Iterator[str]:
        """Yield the lines of records that go on, and list the others."""
        for one in settled:
            if one.line is not None:
                yield one.line
            elif one.dropped is not None:
                self.drops.add(*one.dropped)
            elif one.reject is not None:
                self.rejects.add(one.reject)
