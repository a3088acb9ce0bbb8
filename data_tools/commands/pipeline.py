# SPDX-License-Identifier: Apache-2.0
"""The commands of the pipeline: generate, verify, judge, and build, which runs all three."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from data_tools.options import Config, Inputs, Out, StepRejects
from data_tools.terminal import byte_bar, errors, exit_if_failed, kept_bar, show_export, show_step

if TYPE_CHECKING:
    from data_tools.build import BuildSettings
    from data_tools.steps.run import StepReport
    from data_tools.steps.to_parquet import Report

T = TypeVar("T")


def generate_command(
    inputs: Inputs,
    out: Out,
    media_root: Annotated[Path | None, typer.Option(help="Folder that the paths of media are relative to.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model on its server.")] = None,
    base_url: Annotated[list[str] | None, typer.Option(help="A server, http://…/v1; may be repeated.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Calls in flight at once.")] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Run the model on a Ray cluster.")] = None,
    config: Config = None,
    max_reject_share: StepRejects = None,
) -> None:
    """Step 1: a vision-language model behind an OpenAI-compatible server answers each record in the template.

    Replies are stored in OUT.replies.sqlite. After a stop, start again: only what is missing is asked.

    Example: verl-p2r-data generate mine.jsonl --out mine/1-generate --media-root /data --model Qwen2.5-VL-72B-Instruct
    --base-url http://localhost:8000/v1
    """
    from data_tools.steps.generate import generate

    def run(build: BuildSettings, files: list[Path], **shared: Any) -> StepReport:
        urls = tuple(base_url) if base_url else None
        settings = _with(build.generate, model=model, base_urls=urls, concurrency=concurrency)
        root = _or(media_root, Path(build.media_root).expanduser())
        return generate(files, out, settings, root, offline=_or(offline, build.offline), **shared)

    _step("generate", inputs, out, config, max_reject_share, run)


def verify_command(
    inputs: Inputs,
    out: Out,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Least accuracy of the answer; 0.6 by default, as in the paper.")
    ] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="Compare answers exactly as Video-R1 does.")] = None,
    config: Config = None,
    max_reject_share: StepRejects = None,
) -> None:
    """Step 2: keep the responses that follow the template and answer correctly.

    Example: verl-p2r-data verify mine/1-generate --out mine/2-verify
    """
    from data_tools.steps.verify import verify

    def run(build: BuildSettings, files: list[Path], **shared: Any) -> StepReport:
        return verify(files, out, _with(build.verify, min_accuracy=min_accuracy, strict=strict), **shared)

    _step("verify", inputs, out, config, max_reject_share, run)


def judge_command(
    inputs: Inputs,
    out: Out,
    judge: Annotated[str | None, typer.Option(help="openai, facts, or module:Class.")] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Folder of the media; a record is then judged again when its file changes.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the judge on its server.")] = None,
    base_url: Annotated[list[str] | None, typer.Option(help="A server, http://…/v1; may be repeated.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Calls in flight at once.")] = None,
    config: Config = None,
    max_reject_share: StepRejects = None,
) -> None:
    """Step 3: keep the records whose observation suffices to deduce the answer, by a judge that sees no media.

    Verdicts are stored in OUT.replies.sqlite. After a stop, start again: only what is missing is asked.

    Example: verl-p2r-data judge mine/2-verify --out mine/3-judge --model Qwen2.5-32B-Instruct --base-url
    http://localhost:8000/v1
    """
    from data_tools.steps.judge import judge as judge_records

    def run(build: BuildSettings, files: list[Path], **shared: Any) -> StepReport:
        settings = _with(build.judge, name=judge, concurrency=concurrency)
        given = {name: value for name, value in (("model", model), ("base_urls", base_url)) if value}
        settings = _with(settings, kwargs={**settings.kwargs, **given})
        root = media_root or (Path(build.media_root).expanduser() if config else None)
        return judge_records(files, out, settings, root=root, **shared)

    _step("judge", inputs, out, config, max_reject_share, run)


def build_command(
    config: Annotated[Path, typer.Argument(help="A YAML file, see examples/data/build.yaml.")],
) -> None:
    """Run all three steps and both exports from one YAML file; after a stop, start it again to continue.

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
    exit_if_failed(*reports)


def _step(
    name: str,
    inputs: list[str],
    out: Path,
    config: Path | None,
    max_reject_share: float | None,
    run: Callable[..., StepReport],
) -> None:
    """Run a step on the files of its inputs, with a progress bar, and show its report.

    Args:
        name: name of the step.
        inputs: files of records, or output folders of steps.
        out: output folder.
        config: YAML file with the settings of a build.
        max_reject_share: overrides that of the build.
        run: called with the build's settings, the files, `max_reject_share` and `on_record`.
    """
    from data_tools.build import BuildSettings
    from data_tools.records.files import files_of
    from data_tools.steps.run import count_records

    with errors():
        build = BuildSettings.load(config) if config else BuildSettings()
        files = files_of(inputs)
        share = _or(max_reject_share, build.max_reject_share)
        with kept_bar(name, count_records(files)) as on_record:
            report = run(build, files, max_reject_share=share, on_record=on_record)
    show_step(report, out)
    exit_if_failed(report)


def _with(settings: T, **given: Any) -> T:
    """Return settings with the options that were given."""
    return replace(settings, **{name: value for name, value in given.items() if value is not None})  # type: ignore


def _or(given: T | None, default: T) -> T:
    return default if given is None else given
