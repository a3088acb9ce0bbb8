# SPDX-License-Identifier: Apache-2.0
"""What all steps share: records in, records out, and an account of the rest in a folder (`records.folders`)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    with RejectLog(partial / REJECTS) as rejects, DropLog(partial / DROPPED) as drops:
        source = Records(files, rejects, on_bytes)
        written = write_lines(partial, _lines(step, transform(source), rejects, drops))
        report = StepReport(
            step,
            source.read,
            written,
            dict(drops.reasons.most_common()),
            dict(rejects.reasons.most_common()),
            tuple(rejects.first),
            rejects.damaged or not written or rejects.total > max_reject_share * source.read,
        )
        write_manifest(
            partial,
            step,
            files,
            read=report.read,
            written=written,
            rejects=rejects,
            dropped=report.dropped,
            failed=report.failed,
            settings={**settings, "max_reject_share": max_reject_share},
        )
    return report


def _lines(step: str, outcomes: Iterable[Outcome], rejects: RejectLog, drops: DropLog) -> Iterator[str]:
    """Yield the records that go on, as lines of JSON, and list the others."""
    for record, why in outcomes:
        if isinstance(why, Dropped):
            drops.add(why.reason, dropped_line(step, record, why))
        elif why is not None:
            rejects.add(rejected(record, why))
        else:
            yield line_of(record)
