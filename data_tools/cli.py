# SPDX-License-Identifier: Apache-2.0
"""The command `verl-p2r-data`, or `python -m data_tools`.

Exits with 1 when more was rejected than `--max-reject-share` allows or a file was damaged, with 2 when what was asked
for cannot be done.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from data_tools.rejects import Reject
    from data_tools.to_parquet import ExportSettings, Report

app = typer.Typer(help="Data for VideoP2R: import, export, decontaminate, look.", no_args_is_help=True)
console = Console()

WORKERS = os.cpu_count() or 1

Inputs = Annotated[
    list[str], typer.Argument(help="Files of records (JSON or JSON lines, .gz or not), or the output folder of a step.")
]
Out = Annotated[Path, typer.Option(help="The folder to write; an earlier output there is replaced.")]
ValShare = Annotated[float, typer.Option(help="Share of media whose records are for validation.")]
MediaRoot = Annotated[str | None, typer.Option(help="Folder of the media, written in front of their paths.")]
CheckMedia = Annotated[bool, typer.Option(help="Decode every medium; drop the records of those that fail.")]
Workers = Annotated[int, typer.Option(min=1, help="Media decoded at a time.")]
Template = Annotated[str, typer.Option(help="Prompt template: one of the package's, or a text file.")]
MaxRejects = Annotated[float, typer.Option(help="Largest share of records that may be rejected.")]


class ExportKind(str, Enum):
    """What an export is for."""

    sft = "sft"
    rl = "rl"


class By(str, Enum):
    """What decides whether a record occurs in a benchmark."""

    medium = "medium"
    question = "question"
    both = "both"


@app.command("import-release")
def import_release_command(
    folder: Annotated[Path, typer.Argument(help="Where the release 1171-jpg/videop2r was downloaded.")],
    out: Out,
    val_share: ValShare = 0.01,
    media_root: MediaRoot = None,
    check_media: CheckMedia = False,
    workers: Workers = WORKERS,
    prompt_template: Template = "process_aware",
    max_reject_share: MaxRejects = 0.01,
) -> None:
    """The VideoP2R release to parquet: OUT/sft and OUT/rl, with counts beside the published ones.

    Example: verl-p2r-data import-release videop2r --out data/videop2r --media-root /data/Video-R1-data
    """
    from data_tools.import_release import differences, find_parts, import_release
    from data_tools.stats import types_table

    with _errors():
        settings = _settings(val_share, media_root, check_media, workers, prompt_template, max_reject_share)
        files = [file for parts in find_parts(folder).values() for file in parts]
        with _bar("importing", files) as on_bytes:
            reports = import_release(folder, out, settings, on_bytes=on_bytes)
    for kind, report in reports.items():
        console.print(f"\n[bold]{kind}[/]")
        console.print(types_table(report.counts))
        _differences(differences(kind, report.counts))
        _summary(report, out / kind)
    _leave(any(report.failed for report in reports.values()))


@app.command("to-parquet")
def to_parquet_command(
    inputs: Inputs,
    out: Out,
    kind: Annotated[ExportKind, typer.Option(help="sft: prompt and response; rl: prompt and ground truth.")],
    val_share: ValShare = 0.01,
    media_root: MediaRoot = None,
    check_media: CheckMedia = False,
    workers: Workers = WORKERS,
    prompt_template: Template = "process_aware",
    max_reject_share: MaxRejects = 0.01,
) -> None:
    """Records to the parquet that verl trains on: OUT/train.parquet and OUT/val.parquet.

    Example: verl-p2r-data to-parquet mine.jsonl --kind rl --out data/mine --media-root /data/mine --check-media
    """
    from data_tools.records import files_of
    from data_tools.stats import types_table
    from data_tools.to_parquet import to_parquet

    with _errors():
        settings = _settings(val_share, media_root, check_media, workers, prompt_template, max_reject_share)
        files = files_of(inputs)
        with _bar("exporting", files) as on_bytes:
            report = to_parquet(files, out, kind.value, settings, on_bytes=on_bytes)
    console.print(types_table(report.counts))
    _summary(report, out)
    _leave(report.failed)


@app.command("decontaminate")
def decontaminate_command(
    inputs: Inputs,
    out: Out,
    benchmark: Annotated[list[Path], typer.Option(help="A benchmark: JSON, JSON lines or parquet; may be repeated.")],
    by: Annotated[By, typer.Option(help="What makes a record one of the benchmark's.")] = By.both,
    medium_field: Annotated[str | None, typer.Option(help="The benchmark's field for its media.")] = None,
    question_field: Annotated[str | None, typer.Option(help="The benchmark's field for its questions.")] = None,
    max_reject_share: MaxRejects = 0.01,
) -> None:
    """Leave out the records whose medium or question occurs in a benchmark; OUT/dropped.jsonl lists them.

    Example: verl-p2r-data decontaminate data/VideoP2R-263k_rl.part*.json.gz --benchmark mvbench.jsonl --out clean
    """
    from data_tools.decontaminate import MEDIUM_FIELDS, QUESTION_FIELDS, Benchmark, decontaminate
    from data_tools.records import files_of

    with _errors():
        files = files_of(inputs)
        media = (medium_field,) if medium_field else MEDIUM_FIELDS
        questions = (question_field,) if question_field else QUESTION_FIELDS
        known = Benchmark(benchmark, media, questions)
        names = ("medium", "question") if by is By.both else (by.value,)
        with _bar("decontaminating", files) as on_bytes:
            done = decontaminate(files, known, out, by=names, max_reject_share=max_reject_share, on_bytes=on_bytes)
    _say(f"benchmark: {len(known.media):,} media, {len(known.questions):,} questions")
    _say(f"{done.read:,} records read, {done.written:,} kept in {out}")
    for reason, count in done.dropped.items():
        _say(f"  dropped, {reason}: {count:,} (dropped.jsonl)")
    _rejects(done.rejected, done.first, out)
    _leave(done.failed)


@app.command("stats")
def stats_command(
    inputs: Inputs,
    tokenizer: Annotated[
        str | None, typer.Option(help="Of the model, a folder or a name: measures both segments.")
    ] = None,
    published: Annotated[bool, typer.Option(help="Compare with the published counts of VideoP2R-CoT-162K.")] = False,
) -> None:
    """Counts by type, source and modality, lengths of both segments, repeated questions, keep rate of each step.

    Example: verl-p2r-data stats videop2r/data/VideoP2R-162k_sft.part*.json.gz --tokenizer Qwen/Qwen2.5-VL-7B-Instruct
    """
    from data_tools.import_release import differences
    from data_tools.records import Records, files_of
    from data_tools.rejects import RejectLog
    from data_tools.stats import Stats

    with _errors(), tempfile.TemporaryDirectory() as folder, RejectLog(Path(folder) / "rejects.jsonl") as rejects:
        files = files_of(inputs)
        loaded = _tokenizer(tokenizer) if tokenizer else None
        with _bar("reading", files) as on_bytes:
            stats = Stats.collect(Records(files, rejects, on_bytes), loaded, files)
    for table in stats.tables():
        console.print(table, "")
    if published:
        _differences(differences("sft", stats.types))
    _rejects(rejects.reasons, rejects.first, None)


def _settings(
    val_share: float, media_root: str | None, check: bool, workers: int, template: str, share: float
) -> ExportSettings:
    from data_tools.to_parquet import ExportSettings

    return ExportSettings(val_share, media_root, check, workers, template, share)


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(name)
    if not loaded.is_fast:
        raise ValueError(f"{name}: has only a slow tokenizer, which does not say where its tokens begin: name another")
    return loaded


@contextmanager
def _errors() -> Iterator[None]:
    """What a user can put right becomes a line and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        _say(str(error), "red")
        raise typer.Exit(2) from None


@contextmanager
def _bar(what: str, files: Sequence[Path]) -> Iterator[Callable[[int], object]]:
    """A progress bar over the bytes of files."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=sum(file.stat().st_size for file in files))
        yield lambda count: progress.advance(task, count)


def _summary(report: Report, folder: Path) -> None:
    splits = ", ".join(f"{split} {count:,}" for split, count in sorted(report.splits.items())) or "none"
    _say(f"{report.read:,} records read, {report.written:,} written to {folder} ({splits})")
    if report.media[0]:
        _say(f"{report.media[0]:,} media decoded, {report.media[1]:,} of them failed")
    _rejects(report.reasons, report.first, folder)


def _differences(different: Sequence[str]) -> None:
    for line in different or ["the counts are the published ones"]:
        _say(line, "yellow" if different else "green")


def _rejects(reasons: Mapping[str, int], first: Sequence[Reject], folder: Path | None) -> None:
    where = f", all of them in {folder / 'rejects.jsonl'}" if folder and reasons else ""
    _say(f"{sum(reasons.values()):,} records rejected{where}", "yellow" if reasons else None)
    for reason, count in reasons.items():
        _say(f"  {reason}: {count:,}")
    for reject in first:
        _say(f"  {reject}", "dim")


def _say(text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _leave(failed: bool) -> None:
    if failed:
        _say("too much was lost: repair the data, or raise --max-reject-share (a damaged file must be repaired)", "red")
        raise typer.Exit(1)
