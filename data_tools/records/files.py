# SPDX-License-Identifier: Apache-2.0
"""Files of records: found, read one record at a time, and written."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import TextIO

from data_tools.records.left_out import RejectLog, rejected_value
from verl_p2r.data.errors import RowError
from verl_p2r.data.reading import read_values
from verl_p2r.data.record import Record
from verl_p2r.data.truths import UNUSABLE
from verl_p2r.data.values import shown
from verl_p2r.media.local_files import is_local_file

SHARD = 50_000  # records in a file


def files_of(inputs: Iterable[str | Path]) -> list[Path]:
    """Find the files of records that inputs stand for.

    Args:
        inputs: files, or output folders of steps.

    Returns:
        The files; for a folder its `part-*.jsonl`, in order.

    Raises:
        ValueError: an input does not exist, or is a folder without records.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        found = sorted(path.glob("part-*.jsonl")) if path.is_dir() else [path] if is_local_file(path) else []
        if not found:
            what = "holds no part-*.jsonl of a step" if path.is_dir() else "does not exist"
            steps = sorted({str(part.parent) for part in path.glob("*/part-*.jsonl")})
            hint = f"; did you mean {' or '.join(steps)}?" if steps else ""
            raise ValueError(f"{path} {what}: name files of records, or the output folder of a step{hint}")
        files += found
    return files


class Records:
    """Iterates over the records of some files; what cannot be read as a record goes to the log of rejects.

    Args:
        files: JSON lists or JSON lines, gzip-compressed or not.
        rejects: the log.
        on_bytes: called with the number of bytes read since the last call.

    Attributes:
        read: number of values read so far.
        unusable: rejected records whose ground truth no answer can match, counted by modality and problem type.
    """

    def __init__(
        self, files: Sequence[Path], rejects: RejectLog, on_bytes: Callable[[int], object] = lambda count: None
    ) -> None:
        self.files, self.rejects, self.on_bytes = files, rejects, on_bytes
        self.read = 0
        self.unusable: Counter[tuple[str, str]] = Counter()

    def __iter__(self) -> Iterator[Record]:
        seen: dict[bytes, int] = {}  # hashes of ids: 263K of them take 40 MB, however long the ids are
        for file in self.files:
            for raw in read_values(file, self.on_bytes):
                self.read += 1
                try:
                    record = Record.parse(raw.value, file=raw.file, line=raw.line, index=self.read - 1)
                    _note_id(record.problem_id, self.read, seen)
                except RowError as error:
                    if error.reason == UNUSABLE:
                        self.unusable[raw.value["data_type"], raw.value["problem_type"]] += 1
                    self.rejects.add(rejected_value(raw, error))
                else:
                    yield record


def _note_id(problem_id: str, number: int, seen: dict[bytes, int]) -> None:
    """Refuse an id that occurred before."""
    first = seen.setdefault(blake2b(problem_id.encode(), digest_size=8).digest(), number)
    if first != number:
        raise RowError(
            "problem_id",
            "duplicate id",
            f"field problem_id is {shown(problem_id, 80)}, like that of record {first} of the input: give each record "
            "its own",
        )


def line_of(record: Record) -> str:
    """Return a record as a line of JSON, without what an earlier step noted when it dropped the record."""
    fields = record.to_json()
    fields.pop("dropped", None)
    return _encode(fields)


_encode = json.JSONEncoder(ensure_ascii=False).encode


def write_lines(folder: Path, lines: Iterable[str]) -> int:
    """Write records, one a line and `SHARD` in a file, and return their number."""
    total = 0
    with ExitStack() as stack:
        file: TextIO | None = None
        for line in lines:
            if total % SHARD == 0:
                stack.close()
                file = stack.enter_context((folder / f"part-{total // SHARD:05d}.jsonl").open("w", encoding="utf-8"))
            assert file is not None
            file.write(line + "\n")
            total += 1
    return total
