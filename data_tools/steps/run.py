# SPDX-License-Identifier: Apache-2.0
"""What all steps share: records in, records out, an account of the rest, and a folder that appears whole.

<out>/part-00000.jsonl …   the records that go on
<out>/dropped.jsonl        those that a step has judged not to: each whole, with the field `dropped` that says why
<out>/rejects.jsonl        what could not be read, or failed: where it stands, and why
<out>/manifest.json        see `folders`
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from data_tools.records.files import Record, Records
from data_tools.records.folders import whole_folder, write_manifest, write_records
from data_tools.records.rejects import Reject, RejectLog
from verl_p2r.data.reading import read_values
from verl_p2r.data.rows import RowError

DROPPED = "dropped.jsonl"

Told = Callable[[bool], object]
"""Told of each record, for a progress bar: whether it goes on."""


class Dropped(RowError):
    """A record that is left out because of what it says, not because something is wrong with it."""


Transform = Callable[[Iterable[Record]], Iterator[tuple[Record, RowError | None]]]
"""What a step does: each record, in order, as it goes on; or with why it does not."""


@dataclass(frozen=True)
class StepReport:
    """What a step has done.

    Args:
        step: its name.
        read, written: numbers of records.
        dropped: records dropped, by reason.
        rejected: records that could not be read, or failed, by reason.
        first: the first of these.
        failed: more than `max_reject_share` were rejected, a file was damaged, or nothing is left.
    """

    step: str
    read: int
    written: int
    dropped: Mapping[str, int]
    rejected: Mapping[str, int]
    first: tuple[Reject, ...]
    failed: bool


def count_records(files: Sequence[Path]) -> int:
    """How many values files hold, for a progress bar: whether each is a record is not looked at."""
    return sum(map(_count, files))


def _count(file: Path) -> int:
    with file.open("rb") as raw:
        if raw.read(1) == b"{":  # JSON lines: to count lines takes a twentieth of reading them
            raw.seek(0)
            return sum(line != b"\n" for line in raw)
    return sum(1 for _ in read_values(file))


class DropLog:
    """Dropped records on their way to a JSON-lines file, which exists only if there are any. A context manager.

    Args:
        path: the file.
        step: which step drops them.
    """

    def __init__(self, path: Path, step: str) -> None:
        self.path, self.step = path, step
        self.reasons: Counter[str] = Counter()
        self._file: TextIO | None = None

    def __enter__(self) -> "DropLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, record: Record, why: Dropped) -> None:
        """Drop a record."""
        self.reasons[why.reason] += 1
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8")
        dropped = {"step": self.step, "reason": why.reason, "message": why.problem}
        self._file.write(json.dumps({**record.to_json(), "dropped": dropped}, ensure_ascii=False) + "\n")


def run_step(
    step: str,
    files: Sequence[Path],
    folder: Path,
    transform: Transform,
    *,
    settings: Mapping[str, Any],
    max_reject_share: float,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> StepReport:
    """Put the records of some files through a step, into a folder of its own.

    Args:
        step: its name.
        files: of records, see `records.files_of`.
        folder: for the output; an earlier one is replaced.
        transform: what it does.
        settings: for the manifest.
        max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        on_bytes: called with the number of bytes of the files that have been read since the last call.

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
    on_bytes: Callable[[int], object] = lambda count: None,
) -> StepReport:
    """The same as `run_step`, into a folder that `folders.whole_folder` has provided."""
    with RejectLog(partial / "rejects.jsonl") as rejects, DropLog(partial / DROPPED, step) as dropped:
        source = Records(files, rejects, on_bytes)

        def kept() -> Iterator[Record]:
            for record, why in transform(source):
                if why is None:
                    extra = {name: value for name, value in record.extra.items() if name != "dropped"}  # but not here
                    yield replace(record, extra=extra) if "dropped" in record.extra else record
                elif isinstance(why, Dropped):
                    dropped.add(record, why)
                else:
                    rejects.add(record.file, record.line, record.problem_id, why)

        written = write_records(partial, kept())
        failed = rejects.damaged or not written or rejects.total > max_reject_share * source.read
        write_manifest(
            partial,
            step,
            files,
            read=source.read,
            written=written,
            rejects=rejects,
            dropped=dict(dropped.reasons.most_common()),
            failed=failed,
            settings={**settings, "max_reject_share": max_reject_share},
        )
    return StepReport(
        step,
        source.read,
        written,
        dict(dropped.reasons.most_common()),
        dict(rejects.reasons.most_common()),
        tuple(rejects.first),
        failed,
    )
