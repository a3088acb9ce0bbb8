# SPDX-License-Identifier: Apache-2.0
"""Records to the parquet files that verl trains on.

<folder>/train.parquet, val.parquet   no medium is in both
sft   `messages` (prompt and response), `images`, `videos`: `verl_p2r.plugin.datasets.sft_dataset`
rl    `prompt`, `images`, `videos`, `reward_model.ground_truth`: `verl_p2r.plugin.datasets.rl_dataset`
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.media.check import MediaCheck, medium_error
from data_tools.records.files import Record, Records
from data_tools.records.folders import whole_folder, write_manifest
from data_tools.records.rejects import Reject, RejectLog
from verl_p2r.data import columns as records
from verl_p2r.data.columns import NO_RESPONSE, SCHEMA, PromptTemplate, question_columns
from verl_p2r.data.errors import RowError
from verl_p2r.media.local_files import is_local_file

Kind = Literal["sft", "rl"]

GROUP_ROWS, GROUP_CHARACTERS = 4096, 1 << 24  # of a row group, whichever comes first: what a reader holds at a time

_EXTRA = pa.struct([*SCHEMA.field("extra_info").type, pa.field("split", pa.string()), pa.field("extra", pa.string())])
RL_SCHEMA = SCHEMA.set(SCHEMA.get_field_index("extra_info"), pa.field("extra_info", _EXTRA))
SFT_SCHEMA = records.SFT_SCHEMA.set(records.SFT_SCHEMA.get_field_index("extra_info"), pa.field("extra_info", _EXTRA))
SCHEMAS: Mapping[Kind, pa.Schema] = {"sft": SFT_SCHEMA, "rl": RL_SCHEMA}


@dataclass(frozen=True)
class ExportSettings:
    """How records are exported.

    Args:
        val_share: the share of media, in [0, 1], whose records are for validation.
        media_root: the folder of the media. Paths are written with it in front; without it they stay relative, and
            training needs `data.p2r.media_root`.
        check_media: decode every medium, and leave out the records of those that fail.
        workers: media decoded at a time.
        prompt_template: one of the package's, or the path of a text file.
        max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        check_files: leave out the records whose medium's file is not there.
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
    """What a step has done.

    Args:
        read, written, rejected: numbers of records.
        reasons: rejects by reason, the most frequent first.
        first: the first rejects.
        damaged: a file was damaged, so that an unknown number of records is lost.
        max_reject_share: what the step was to put up with.
        counts: records written, by modality and problem type.
        unusable: records whose ground truth nothing can match, likewise: they are rejected, and were published.
        splits: records written, by split.
        media: files decoded, and those of them that failed; zeros when none were.
    """

    read: int
    written: int
    rejected: int
    reasons: Mapping[str, int]
    first: tuple[Reject, ...]
    damaged: bool
    max_reject_share: float
    counts: Mapping[tuple[str, str], int]
    unusable: Mapping[tuple[str, str], int]
    splits: Mapping[str, int]
    media: tuple[int, int] = (0, 0)

    @property
    def failed(self) -> bool:
        """Whether too much was lost to go on without a look at it."""
        return self.damaged or self.written == 0 or self.rejected > self.max_reject_share * self.read


def to_parquet(
    files: Sequence[Path],
    folder: Path,
    kind: Kind,
    settings: ExportSettings | None = None,
    *,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Report:
    """Export the records of some files.

    Args:
        files: of records, see `records.files_of`.
        folder: for `train.parquet`, `val.parquet`, `manifest.json`, `rejects.jsonl`; an earlier export is replaced.
        kind: `sft` needs records with a response; `rl` leaves responses out.
        settings: how.
        on_bytes: told how many more bytes of the files have been read.

    Returns:
        The report. The files are there also when it says `failed`, for a look at them.

    Raises:
        ValueError: the template or the folder cannot be used, or media are to be checked without a root.
    """
    settings = settings or ExportSettings()
    if (settings.check_media or settings.check_files) and settings.media_root is None:
        raise ValueError("media can be checked only where they are: give the media root too")
    root = Path(os.path.abspath(Path(settings.media_root).expanduser())) if settings.media_root else None
    template = PromptTemplate.load(settings.prompt_template)
    counts: Counter[tuple[str, str]] = Counter()
    with whole_folder(folder, files) as partial, RejectLog(partial / "rejects.jsonl") as rejects:
        source = Records(files, rejects, on_bytes)
        check = MediaCheck(root, rejects, settings.workers) if settings.check_media and root else None
        with _Splits(partial, SCHEMAS[kind]) as splits:
            for record in check(source) if check else source:
                split = split_of(record.path, settings.val_share)
                try:
                    if root:
                        record.medium.element(root)  # a RowError where the path leads out of the root
                    if settings.check_files and root and not is_local_file(root / record.path):
                        raise medium_error(root / record.path, FileNotFoundError("no such file"))
                    row = row_of(record, kind, sum(splits.rows.values()), split, template, root)
                except RowError as error:
                    rejects.add(record.file, record.line, record.problem_id, error)
                    continue
                splits.add(split, row, _characters(record))
                counts[record.data_type, record.problem_type] += 1
        report = Report(
            read=source.read,
            written=sum(splits.rows.values()),
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
    """The split that a medium's records belong to, the same in every export.

    Args:
        path: of the medium, as `Record.path` has it.
        val_share: the share of media in validation.

    >>> [split_of("STAR/a.mp4", share) for share in (0, 1)]
    ['train', 'val']
    """
    number = int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "big")
    return "val" if number < val_share * 2**64 else "train"


def row_of(
    record: Record, kind: Kind, index: int, split: str, template: PromptTemplate, root: Path | None = None
) -> dict[str, Any]:
    """A record as a row of `SFT_SCHEMA` or `RL_SCHEMA`.

    Args:
        record: the record.
        kind: `sft` or `rl`.
        index: the row's number in the export, for messages of a run.
        split: `train` or `val`, likewise.
        template: the prompt's template.
        root: put before the medium's path.

    Raises:
        RowError: an SFT record has no response in the template.
    """
    columns = question_columns(record.question(root), index, template)
    extra = json.dumps(dict(record.extra), ensure_ascii=False) if record.extra else None
    columns["extra_info"] |= {"split": split, "extra": extra}
    if kind == "rl":
        return columns
    response = record.response
    if response is None:
        raise record.error("output", "no response", NO_RESPONSE)
    messages = [*columns["prompt"], {"role": "assistant", "content": response}]
    return {"messages": messages} | {name: columns[name] for name in SFT_SCHEMA.names[1:]}


class _Splits:
    """The parquet files of an export, one a split, each written row group by row group. A context manager."""

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
