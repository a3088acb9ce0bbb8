# SPDX-License-Identifier: Apache-2.0
"""The commands that turn files of records into training data: import-release, to-parquet, decontaminate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_tools.options import (
    WORKERS,
    By,
    CheckMedia,
    ExportKind,
    Inputs,
    MaxRejects,
    MediaRoot,
    Out,
    Template,
    ValShare,
    Workers,
)
from data_tools.terminal import (
    byte_bar,
    console,
    errors,
    exit_if_failed,
    say,
    show_differences,
    show_export,
    show_step,
)

if TYPE_CHECKING:
    from data_tools.steps.to_parquet import ExportSettings


def import_release_command(
    folder: Annotated[Path, typer.Argument(help="Folder of the downloaded release 1171-jpg/videop2r.")],
    out: Out,
    val_share: ValShare = 0.01,
    media_root: MediaRoot = None,
    check_media: CheckMedia = False,
    workers: Workers = WORKERS,
    prompt_template: Template = "process_aware",
    max_reject_share: MaxRejects = 0.01,
) -> None:
    """Export the VideoP2R release to OUT/sft and OUT/rl, and compare its counts with the published ones.

    Example: verl-p2r-data import-release videop2r --out data/videop2r --media-root /data/Video-R1-data
    """
    from data_tools.look.stats import types_table
    from data_tools.steps.import_release import differences, find_parts, import_release

    with errors():
        settings = _settings(val_share, media_root, check_media, workers, prompt_template, max_reject_share)
        files = [file for parts in find_parts(folder).values() for file in parts]
        with byte_bar("importing", files) as on_bytes:
            reports = import_release(folder, out, settings, on_bytes=on_bytes)
    for kind, report in reports.items():
        console.print(f"\n[bold]{kind}[/]")
        console.print(types_table(report.counts))
        show_differences(differences(kind, report.counts, report.unusable))
        if report.unusable:
            say(f"{sum(report.unusable.values()):,} of these have a ground truth that no answer can match", "yellow")
        show_export(report, out / kind)
    exit_if_failed(*reports.values())


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
    """Export records to the parquet that verl trains on: OUT/train.parquet and OUT/val.parquet.

    Example: verl-p2r-data to-parquet mine.jsonl --kind rl --out data/mine --media-root /data/mine --check-media
    """
    from data_tools.look.stats import types_table
    from data_tools.records.files import files_of
    from data_tools.steps.to_parquet import to_parquet

    with errors():
        settings = _settings(val_share, media_root, check_media, workers, prompt_template, max_reject_share)
        files = files_of(inputs)
        with byte_bar("exporting", files) as on_bytes:
            report = to_parquet(files, out, kind.value, settings, on_bytes=on_bytes)
    console.print(types_table(report.counts))
    show_export(report, out)
    exit_if_failed(report)


def decontaminate_command(
    inputs: Inputs,
    out: Out,
    benchmark: Annotated[list[Path], typer.Option(help="A benchmark: JSON, JSON lines or parquet; may be repeated.")],
    by: Annotated[By, typer.Option(help="What is compared with the benchmark.")] = By.both,
    medium_field: Annotated[str | None, typer.Option(help="Field of the benchmark that names its media.")] = None,
    question_field: Annotated[str | None, typer.Option(help="Field of the benchmark that holds its questions.")] = None,
    max_reject_share: MaxRejects = 0.01,
) -> None:
    """Drop the records whose medium or question occurs in a benchmark; OUT/dropped.jsonl lists them.

    Example: verl-p2r-data decontaminate data/VideoP2R-263k_rl.part*.json.gz --benchmark mvbench.jsonl --out clean
    """
    from data_tools.records.files import files_of
    from data_tools.steps.decontaminate import MEDIUM_FIELDS, QUESTION_FIELDS, Benchmark, decontaminate

    with errors():
        files = files_of(inputs)
        media = (medium_field,) if medium_field else MEDIUM_FIELDS
        questions = (question_field,) if question_field else QUESTION_FIELDS
        names = ("medium", "question") if by is By.both else (by.value,)
        known = Benchmark(benchmark, media, questions, names)
        for kind, field, keys in (
            ("medium", medium_field, known.media),
            ("question", question_field, known.questions),
        ):
            if field and kind in names and not keys:
                raise ValueError(f"no row of the benchmark has a {kind} in field {field}: correct --{kind}-field")
        with byte_bar("decontaminating", files) as on_bytes:
            done = decontaminate(files, known, out, by=names, max_reject_share=max_reject_share, on_bytes=on_bytes)
    say(f"benchmark: {len(known.media):,} media, {len(known.questions):,} questions")
    show_step(done, out)
    exit_if_failed(done)


def _settings(
    val_share: float, media_root: str | None, check: bool, workers: int, template: str, share: float
) -> ExportSettings:
    from data_tools.steps.to_parquet import ExportSettings

    if media_root is not None and not Path(media_root).is_dir():
        say(f"{media_root} is not a folder here; it is written in front of the paths all the same", "yellow")
    return ExportSettings(val_share, media_root, check, workers, template, share)
