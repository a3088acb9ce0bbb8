# SPDX-License-Identifier: Apache-2.0
"""Exports records to the parquet files that verl trains on.

<folder>/train.parquet, val.parquet   no medium is in both
sft   `messages` (prompt and response), `images`, `videos`: `verl_p2r.plugin.datasets.sft_dataset`
rl    `prompt`, `images`, `videos`, `reward_model.ground_truth`: `verl_p2r.plugin.datasets.rl_dataset`
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.media.check import MediaCheck, medium_error
from data_tools.records.files import Records
from data_tools.records.folders import whole_folder, write_manifest
from data_tools.records.left_out import REJECTS, RejectedRecord, RejectLog, rejected
from data_tools.steps.run import OnBytes
from verl_p2r.data import columns
from verl_p2r.data.errors import RowError
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record
from verl_p2r.media.local_files import is_local_file

Kind = Literal["sft", "rl"]

# A row group ends at the first of these limits; readers hold one at a time.
GROUP_ROWS = 4096
GROUP_CHARACTERS = 1 << 24

MAKERS: Mapping[Kind, Callable[..., dict[str, Any]]] = {"sft": columns.sft_columns, "rl": columns.rl_columns}


def schema_of(kind: Kind) -> pa.Schema:
    """Return the columns of an export: those of `data.columns`, with `split` and `extra` added to `extra_info`."""
    schema = {"sft": columns.SFT_SCHEMA, "rl": columns.SCHEMA}[kind]
    place = schema.get_field_index("extra_info")
    more = (pa.field("split", pa.string()), pa.field("extra", pa.string()))
    return schema.set(place, pa.field("extra_info", pa.struct([*schema.field(place).type, *more])))


@dataclass(frozen=True)
class ExportSettings:
    """How records are exported.

    Args:
        val_share: share of media, in [0, 1], whose records are for validation.
        media_root: folder of the media, written in front of their paths. Without it paths stay relative, and training
            needs `data.p2r.media_root`.
        check_media: decode every medium, and reject the records of those that fail.
        workers: media decoded at a time.
        prompt_template: one of the package's templates, or the path of a text file.
        max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        check_files: reject the records whose medium does not exist.
    """

    val_share: float = 0.01
    media_root: str | None = None
    check_media: bool = False
    workers: int = 4
    prompt_template: str = "process_aware"
    max_reject_share: float = 0.01
    check_files: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.val_share <= 1:
            raise ValueError(f"val_share is {self.val_share}: give a share between 0 and 1")
        if not 0 <= self.max_reject_share <= 1:
            raise ValueError(f"max_reject_share is {self.max_reject_share}: give a share between 0 and 1")


@dataclass(frozen=True)
class Report:
    """What an export has done.

    Args:
        read: number of records read.
        written: number of records written.
        rejected: number of records rejected.
        reasons: rejected records by reason, the most frequent first.
        first: the first rejected records.
        damaged: a file was damaged, so that an unknown number of records is lost.
        max_reject_share: the largest share that was allowed to be rejected.
        counts: records written, by modality and problem type.
        unusable: records rejected because no answer can match their ground truth, likewise.
        splits: records written, by split.
        media: number of media decoded, and of those that failed.
    """

    read: int
    written: int
    rejected: int
    reasons: Mapping[str, int]
    first: tuple[RejectedRecord, ...]
    damaged: bool
    max_reject_share: float
    counts: Mapping[tuple[str, str], int]
    unusable: Mapping[tuple[str, str], int]
    splits: Mapping[str, int]
    media: tuple[int, int] = (0, 0)

    @property
    def failed(self) -> bool:
        """Whether so much was lost that someone should look at it before going on."""
        return self.damaged or self.written == 0 or self.rejected > self.max_reject_share * self.read


def to_parquet(
    files: Sequence[Path],
    folder: Path,
    kind: Kind,
    settings: ExportSettings | None = None,
    *,
    on_bytes: OnBytes = lambda count: None,
) -> Report:
    """Export the records of some files.

    Args:
        files: files of records, see `records.files.files_of`.
        folder: output folder; an earlier export is replaced.
        kind: `sft` needs records with a response; `rl` leaves responses out.
        settings: how to export.
        on_bytes: called as the files are read.

    Returns:
        The report. The output exists even if the report says `failed`, so that it can be looked at.

    Raises:
        ValueError: the template or the folder cannot be used, or media are to be checked without a root.
    """
    settings = settings or ExportSettings()
    if (settings.check_media or settings.check_files) and settings.media_root is None:
        raise ValueError("media can be checked only if their folder is known: give the media root too")
    root = Path(os.path.abspath(Path(settings.media_root).expanduser())) if settings.media_root else None
    template = PromptTemplate.load(settings.prompt_template)
    with whole_folder(folder, files) as partial, RejectLog(partial / REJECTS) as rejects:
        source = Records(files, rejects, on_bytes)
        check = MediaCheck(root, rejects, settings.workers) if settings.check_media and root else None
        counts: Counter[tuple[str, str]] = Counter()
        with _Splits(partial, schema_of(kind)) as splits:
            records = check(source) if check else source
            for record, split, row in _rows(records, kind, template, settings, root, rejects):
                splits.add(split, row, _characters(record))
                counts[record.data_type, record.problem_type] += 1
        report = Report(
            read=source.read,
            written=counts.total(),
            rejected=rejects.total,
            reasons=dict(rejects.reasons.most_common()),
            first=tuple(rejects.first),
            damaged=rejects.damaged,
            max_reject_share=settings.max_reject_share,
            counts=counts,
            unusable=source.unusable,
            splits=dict(splits.rows),
            media=(check.files, check.bad) if check else (0, 0),
        )
        write_manifest(
            partial,
            f"to_parquet {kind}",
            files,
            read=report.read,
            written=report.written,
            rejects=rejects,
            failed=report.failed,
            settings=asdict(settings),
            splits=report.splits,
            counts={f"{modality}, {problem_type}": n for (modality, problem_type), n in sorted(counts.items())},
        )
    return report


def split_of(path: str, val_share: float) -> str:
    """Return the split of a medium's records, the same in every export.

    Args:
        path: path of the medium, as in `Record.path`.
        val_share: share of media in validation.

    >>> [split_of("STAR/a.mp4", share) for share in (0, 1)]
    ['train', 'val']
    """
    number = int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "big")
    return "val" if number < val_share * 2**64 else "train"


def _rows(
    records: Iterable[Record],
    kind: Kind,
    template: PromptTemplate,
    settings: ExportSettings,
    root: Path | None,
    rejects: RejectLog,
) -> Iterator[tuple[Record, str, dict[str, Any]]]:
    """Yield each record with its split and its row; records that make no row are rejected."""
    number = 0
    for record in records:
        split = split_of(record.path, settings.val_share)
        try:
            if root:
                record.medium.element(root)  # raises where the path leads out of the root
            if root and settings.check_files and not is_local_file(root / record.path):
                raise medium_error(root / record.path, FileNotFoundError("no such file"))
            row = MAKERS[kind](record, number, template, root)
        except RowError as error:
            rejects.add(rejected(record, error))
            continue
        extra = json.dumps(dict(record.extra), ensure_ascii=False) if record.extra else None
        row["extra_info"] |= {"split": split, "extra": extra}
        number += 1
        yield record, split, row


class _Splits:
    """Writes the parquet file of each split, one row group at a time. A context manager."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema
        self.rows: Counter[str] = Counter()
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._characters: Counter[str] = Counter()
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "_Splits":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            if kind is None:
                for split in list(self._waiting):
                    self._flush(split)
        finally:
            self._stack.close()

    def add(self, split: str, row: dict[str, Any], characters: int) -> None:
        self.rows[split] += 1
        self._characters[split] += characters
        self._waiting.setdefault(split, []).append(row)
        if len(self._waiting[split]) >= GROUP_ROWS or self._characters[split] >= GROUP_CHARACTERS:
            self._flush(split)

    def _flush(self, split: str) -> None:
        rows = self._waiting.pop(split)
        self._characters[split] = 0
        if split not in self._writers:
            writer = pq.ParquetWriter(self.folder / f"{split}.parquet", self.schema, compression="zstd")
            self._writers[split] = self._stack.enter_context(writer)
        self._writers[split].write_batch(pa.RecordBatch.from_pylist(rows, schema=self.schema))


def _characters(record: Record) -> int:
    texts: Iterable[str | None] = (record.problem, record.observation, record.process, record.output, *record.options)
    return sum(len(text) for text in texts if text)
