# SPDX-License-Identifier: Apache-2.0
"""The command `verl-p2r-data`, or `python -m data_tools`.

Exits with 1 when more was rejected than `--max-reject-share` allows or a file was damaged, with 2 when what was asked
for cannot be done.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from data_tools.options import (
    WORKERS,
    By,
    CheckMedia,
    Config,
    ExportKind,
    Inputs,
    MaxRejects,
    MediaRoot,
    Out,
    StepRejects,
    Template,
    ValShare,
    Workers,
)
from data_tools.terminal import (
    byte_bar,
    console,
    count_bar,
    errors,
    kept_bar,
    leave,
    say,
    show_differences,
    show_export,
    show_rejects,
    show_step,
)

if TYPE_CHECKING:
    from data_tools.build import BuildSettings
    from data_tools.steps.run import StepReport
    from data_tools.steps.to_parquet import ExportSettings, Report

T = TypeVar("T")

app = typer.Typer(help="Data for VideoP2R: import, export, decontaminate, look.", no_args_is_help=True)


@app.command("generate")
def generate_command(
    inputs: Inputs,
    out: Out,
    media_root: Annotated[Path | None, typer.Option(help="Folder that the media's paths start from.")] = None,
    model: Annotated[str | None, typer.Option(help="The model's name on its server.")] = None,
    base_url: Annotated[list[str] | None, typer.Option(help="A server, http://…/v1; may be repeated.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Calls in flight at once.")] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="A Ray cluster runs the model.")] = None,
    config: Config = None,
    max_reject_share: StepRejects = None,
) -> None:
    """Step 1: a vision-language model behind an OpenAI-compatible server answers each record in the template.

    Replies are kept in OUT.replies.sqlite: start again after a stop, and only what is missing is asked.

    Example: verl-p2r-data generate mine.jsonl --out mine/1-generate --media-root /data --model Qwen2.5-VL-72B-Instruct
    --base-url http://localhost:8000/v1
    """
    from data_tools.records.files import files_of
    from data_tools.steps.generate import generate
    from data_tools.steps.run import count_records

    with errors():
        build = _of_build(config)
        urls = tuple(base_url) if base_url else None
        settings = _with(build.generate, model=model, base_urls=urls, concurrency=concurrency)
        root = _or(media_root, Path(build.media_root).expanduser())
        files = files_of(inputs)
        with kept_bar("generate", count_records(files)) as told:
            report = generate(
                files,
                out,
                settings,
                root,
                offline=_or(offline, build.offline),
                max_reject_share=_or(max_reject_share, build.max_reject_share),
                told=told,
            )
    show_step(report, out)
    leave(report)


@app.command("verify")
def verify_command(
    inputs: Inputs,
    out: Out,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Of the answer; the paper's, and the default, is 0.6.")
    ] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="Compare answers as Video-R1 does.")] = None,
    config: Config = None,
    max_reject_share: StepRejects = None,
) -> None:
    """Step 2: keep the responses that are in the template and whose answer is right.

    Example: verl-p2r-data verify mine/1-generate --out mine/2-verify
    """
    from data_tools.records.files import files_of
    from data_tools.steps.run import count_records
    from data_tools.steps.verify import verify

    with errors():
        build = _of_build(config)
        settings = _with(build.verify, min_accuracy=min_accuracy, strict=strict)
        files = files_of(inputs)
        with kept_bar("verify", count_records(files)) as told:
            report = verify(
                files, out, settings, max_reject_share=_or(max_reject_share, build.max_reject_share), told=told
            )
    show_step(report, out)
    leave(report)


@app.command("judge")
def judge_command(
    inputs: Inputs,
    out: Out,
    judge: Annotated[str | None, typer.Option(help="openai, facts, or module:Class.")] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Folder of the media: judge anew when a file changes.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The judge's name on its server.")] = None,
    base_url: Annotated[list[str] | None, typer.Option(help="A server, http://…/v1; may be repeated.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Calls in flight at once.")] = None,
    config: Config = None,
    max_reject_share: StepRejects = None,
) -> None:
    """Step 3: keep the records whose observation suffices to deduce the answer, says a judge that sees no media.

    Verdicts are kept in OUT.replies.sqlite: start again after a stop, and only what is missing is asked.

    Example: verl-p2r-data judge mine/2-verify --out mine/3-judge --model Qwen2.5-32B-Instruct --base-url
    http://localhost:8000/v1
    """
    from data_tools.records.files import files_of
    from data_tools.steps.judge import judge as run
    from data_tools.steps.run import count_records

    with errors():
        build = _of_build(config)
        settings = _with(build.judge, name=judge, concurrency=concurrency)
        own = {name: value for name, value in (("model", model), ("base_urls", base_url)) if value}
        settings = _with(settings, kwargs={**settings.kwargs, **own})
        files = files_of(inputs)
        with kept_bar("judge", count_records(files)) as told:
            report = run(
                files,
                out,
                settings,
                max_reject_share=_or(max_reject_share, build.max_reject_share),
                root=media_root or (Path(build.media_root).expanduser() if config else None),
                told=told,
            )
    show_step(report, out)
    leave(report)


@app.command("build")
def build_command(
    config: Annotated[Path, typer.Argument(help="A YAML file, see examples/data/build.yaml.")],
) -> None:
    """All three steps, then SFT and RL parquet, from one YAML file; start it again after a stop, and it goes on.

    Example: verl-p2r-data build examples/data/build.yaml
    """
    from data_tools.build import BuildSettings, build
    from data_tools.steps.run import StepReport

    reports: list[StepReport | Report] = []
    with errors():
        settings = BuildSettings.load(config)
        for folder, report in build(settings, kept_bar, byte_bar):
            if isinstance(report, StepReport):
                show_step(report, folder)
            else:
                show_export(report, folder)
            reports.append(report)
    leave(*reports)


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
            say(f"{sum(report.unusable.values()):,} of these have a ground truth that nothing can match", "yellow")
        show_export(report, out / kind)
    leave(*reports.values())


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
    leave(report)


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
    from data_tools.records.files import files_of
    from data_tools.steps.decontaminate import MEDIUM_FIELDS, QUESTION_FIELDS, Benchmark, decontaminate

    with errors():
        files = files_of(inputs)
        media = (medium_field,) if medium_field else MEDIUM_FIELDS
        questions = (question_field,) if question_field else QUESTION_FIELDS
        names = ("medium", "question") if by is By.both else (by.value,)
        known = Benchmark(benchmark, media, questions, names)
        with byte_bar("decontaminating", files) as on_bytes:
            done = decontaminate(files, known, out, by=names, max_reject_share=max_reject_share, on_bytes=on_bytes)
    say(f"benchmark: {len(known.media):,} media, {len(known.questions):,} questions")
    show_step(done, out)
    leave(done)


@app.command("stats")
def stats_command(
    inputs: Inputs,
    tokenizer: Annotated[
        str | None, typer.Option(help="Of the model, a folder or a name: measures both segments.")
    ] = None,
    published: Annotated[bool, typer.Option(help="Compare with the published counts of VideoP2R-CoT-162K.")] = False,
    png: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also draw them, as PNG files in this folder.")
    ] = None,
) -> None:
    """Counts by type, source and modality, lengths of both segments, repeated questions, keep rate of each step.

    Example: verl-p2r-data stats videop2r/data/VideoP2R-162k_sft.part*.json.gz --tokenizer Qwen/Qwen2.5-VL-7B-Instruct
    """
    from data_tools.look.stats import Stats
    from data_tools.records.files import Records, files_of
    from data_tools.records.rejects import RejectLog
    from data_tools.steps.import_release import differences

    with errors(), RejectLog(Path(os.devnull)) as rejects:
        files = files_of(inputs)
        loaded = _tokenizer(tokenizer) if tokenizer else None
        with byte_bar("reading", files) as on_bytes:
            records = Records(files, rejects, on_bytes)
            stats = Stats.collect(records, loaded, files)
    for table in stats.tables():
        console.print(table, "")
    if published:
        show_differences(differences("sft", stats.types, records.unusable))
    show_rejects(rejects.reasons, rejects.first, None)
    if png is not None:
        from data_tools.look.stats_plots import write_plots

        with errors():
            for file in write_plots(stats, png):
                say(f"written: {file}")


@app.command("view")
def view_command(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    media_root: Annotated[Path, typer.Option(help="Folder that the media's paths start from.")] = Path(),
    count: Annotated[int, typer.Option(min=1, max=1000, help="Records to show.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw; the same one shows the same records.")] = 0,
    frames: Annotated[int, typer.Option(min=1, max=64, help="The most pictures of a video.")] = 8,
) -> None:
    """A page to look at a sample of records with: frames, texts, verdicts, why they were dropped, filters.

    Name the folders of several steps to see what each has dropped.

    Example: verl-p2r-data view mine/verify mine/judge --out mine.html --media-root /data/mine
    """
    from data_tools.look.view import Sample, sources_of, write_page
    from data_tools.records.rejects import RejectLog

    with errors(), RejectLog(Path(os.devnull)) as rejects:
        sources = sources_of(inputs)
        with byte_bar("reading", [file for source in sources for file in source]) as on_bytes:
            sample = Sample.draw(sources, count, seed, rejects, on_bytes)
        with count_bar("reading frames", len(sample.cards)) as on_medium:
            page = write_page(sample, out, media_root, frames, on_medium)
    show_rejects(rejects.reasons, rejects.first, None)
    if page.faults:
        say(f"{len(page.faults):,} media cannot be shown; the page says why. The first: {page.faults[0]}", "yellow")
    shown = f"{len(sample.cards):,} of {sample.totals.total():,} records"
    say(f"{out}: {shown}, {page.bytes / (1 << 20):.1f} MiB; open it in a browser")


def _with(settings: T, **given: Any) -> T:
    """Settings with the options that were given."""
    return replace(settings, **{name: value for name, value in given.items() if value is not None})  # type: ignore


def _or(given: T | None, default: T) -> T:
    return default if given is None else given


def _of_build(config: Path | None) -> BuildSettings:
    from data_tools.build import BuildSettings

    return BuildSettings.load(config) if config else BuildSettings()


def _settings(
    val_share: float, media_root: str | None, check: bool, workers: int, template: str, share: float
) -> ExportSettings:
    from data_tools.steps.to_parquet import ExportSettings

    return ExportSettings(val_share, media_root, check, workers, template, share)


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(name)
    if not loaded.is_fast:
        raise ValueError(f"{name}: has only a slow tokenizer, which does not say where its tokens begin: name another")
    return loaded
