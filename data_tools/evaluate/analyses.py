# SPDX-License-Identifier: Apache-2.0
"""The commands of `verl-p2r-eval` that analyse finished runs: `mismatch`, `mismatch-eval`, `sufficiency`, `report`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from data_tools.evaluate.inputs import read_runs, score_runs, server_of
from data_tools.evaluate.options import (
    BaseUrl,
    Concurrency,
    MaxLost,
    Model,
    Out,
    Prepared,
    Protocol,
    RunFolder,
    TrainedOn,
)
from data_tools.terminal import errors, exit_if_failed, kept_bar, say, show_step


def mismatch_command(
    run: RunFolder,
    out: Out,
    model: Model = None,
    base_url: BaseUrl = None,
    prepared: Prepared = None,
    concurrency: Concurrency = 64,
) -> None:
    """Measure how often the thinking concludes with an option other than the answer.

    A rule reads explicit conclusions, and a judge reads the rest. Without --model only the rule reads.

    Example: verl-p2r-eval mismatch runs/p2r --model Qwen2.5-32B-Instruct --base-url http://localhost:8000/v1 --out mm
    """
    from data_tools.evaluate.mismatch import DEFAULTS, mismatch
    from data_tools.evaluate.results import read_run
    from data_tools.evaluate.tables import mismatch_markdown
    from data_tools.records.files import files_of
    from data_tools.steps.run import count_records

    with errors():
        setting = read_run(run, prepared or ()).setting
        with kept_bar("mismatch", count_records(files_of([run]))) as on_record:
            report, tables = mismatch(run, out, server_of(DEFAULTS, model, base_url, concurrency), on_record=on_record)
    say(f"{run.resolve().name}: {setting}; judge {model or 'none, rule only'}")
    for line in mismatch_markdown(tables).splitlines():
        say(line)
    show_step(report, out)
    exit_if_failed(report, remedy="start again, which asks only the items without a verdict")


def mismatch_eval_command(
    cases: Annotated[
        Path | None, typer.Option(help="Your own labelled thinking, JSON lines; default: the package's 36 cases.")
    ] = None,
    model: Model = None,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 64,
) -> None:
    """Measure how well the rule and a judge read labelled thinking, before you trust them with `mismatch`.

    Example: verl-p2r-eval mismatch-eval --model Qwen2.5-32B-Instruct --base-url http://localhost:8000/v1
    """
    from data_tools.evaluate.mismatch import DEFAULTS
    from data_tools.evaluate.mismatch_quality import measure_readers
    from data_tools.evaluate.tables import reading_markdown
    from verl_p2r.evaluation.labelled import labelled_thinking

    with errors():
        table = measure_readers(labelled_thinking(cases), server_of(DEFAULTS, model, base_url, concurrency))
    for line in reading_markdown(table).splitlines():
        say(line)


def sufficiency_command(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    model: Model = None,
    base_url: BaseUrl = None,
    protocol: Protocol = "video_r1",
    prompt: Annotated[str, typer.Option(help="chain_of_thought, direct, or a text file.")] = "chain_of_thought",
    passes: Annotated[
        list[str] | None, typer.Option("--pass", help="observation, question or other; default: all three.")
    ] = None,
    prepared: Prepared = None,
    concurrency: Concurrency = 64,
) -> None:
    """A text-only model answers from question and observation; as controls, from less and from a wrong observation.

    Example: verl-p2r-eval sufficiency runs/p2r --model Qwen2.5-7B-Instruct --base-url http://localhost:8000/v1
    --out sufficiency
    """
    from data_tools.evaluate.results import read_run
    from data_tools.evaluate.sufficiency import DEFAULTS, PASSES, sufficiency
    from data_tools.evaluate.tables import sufficiency_markdown
    from verl_p2r.evaluation import score

    with errors():
        own = read_run(run, prepared or ())
        settings = replace(server_of(DEFAULTS, model, base_url, concurrency), prompt_template=prompt)
        names = tuple(passes or PASSES)
        with kept_bar("sufficiency", len(names) * len(own.records)) as on_record:
            reports, result = sufficiency(own, out, settings, protocol, passes=names, on_record=on_record)
        result["video"] = score(own.records, protocol)
    say(f"Protocol {protocol}; {own.name}: {own.setting}; text-only model {model}, prompt {prompt}")
    for line in sufficiency_markdown(result).splitlines():
        say(line)
    for report, name in zip(reports, names, strict=True):
        show_step(report, out / name)
    # A run without observations leaves no record, and that is a result.
    asked = [report for report in reports if report.rejected]
    exit_if_failed(*asked, remedy="start again, which asks only the items without a reply")


def report_command(
    runs: Annotated[list[Path] | None, typer.Argument(help="Outputs of `run`.")] = None,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("evaluation.html"),
    rollouts: Annotated[
        Path | None,
        typer.Option(help="Instead of runs, the trainer.rollout_data_dir or validation_data_dir of a training."),
    ] = None,
    protocol: Protocol = "video_r1",
    media_root: Annotated[Path | None, typer.Option(help="Media root that `run` was given; shows frames.")] = None,
    prepared: Prepared = None,
    count: Annotated[int, typer.Option(min=1, max=500, help="Replies to show.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    frames: Annotated[int, typer.Option(min=1, max=64, help="Most pictures of a video.")] = 8,
    tokenizer: Annotated[str | None, typer.Option(help="Colour this model's tokens instead of words.")] = None,
    max_lost: MaxLost = 0.01,
    trained_on: TrainedOn = None,
    verdicts: Annotated[
        list[Path] | None,
        typer.Option(help="What `verl-p2r-data judge` or `mismatch` wrote about a run, to show; may be repeated."),
    ] = None,
) -> None:
    """Write one HTML page: scores and published ones, curves over steps, and a sample of replies with their frames.

    Runs whose names end in a step, such as step_40, give a curve.

    Example: verl-p2r-eval report runs/p2r --media-root downloads --out p2r.html

    Example: verl-p2r-eval report --rollouts outputs/rl/rollouts --out rollouts.html
    """
    from data_tools.evaluate.cards import card_of, draw, replies_of
    from data_tools.evaluate.report import Report, score_plots, training_plots, write_report
    from data_tools.evaluate.rollouts import Rollouts
    from data_tools.evaluate.verdicts import Verdicts
    from data_tools.look.tokenizer import fast_tokenizer

    with errors():
        if bool(runs) == bool(rollouts):
            raise ValueError("name outputs of `run`, or the rollouts of a training by --rollouts")
        if rollouts is not None:
            _refuse(
                media_root=media_root, prepared=prepared, tokenizer=tokenizer, trained_on=trained_on, verdicts=verdicts
            )
            own = Rollouts.read(rollouts)
            page = Report(
                f"Rollouts of {own.folder.resolve().parent.name}",
                plots=training_plots(own),
                cards=draw(own.drawables(), count, seed),
            )
        else:
            read = read_runs(list(runs or ()), prepared)
            scored = score_runs(read, protocol, max_lost, trained_on)
            said = Verdicts(verdicts or ())
            loaded = fast_tokenizer(tokenizer) if tokenizer else None
            drawn = draw((one for run in read for one in replies_of(run, protocol)), count, seed)
            page = Report(
                "Evaluation of " + ", ".join(run.name for run in read),
                scored,
                score_plots(scored),
                [card_of(record, loaded, said) for record in drawn],
                media_root,
                frames,
            )
        size = write_report(page, out)
    say(f"{out}: {len(page.cards):,} replies, {size / (1 << 20):.1f} MiB; open it in a browser")


def _refuse(**options: object) -> None:
    """Refuse options that have no effect on the rollouts of a training."""
    for name, value in options.items():
        if value:
            raise ValueError(f"--{name.replace('_', '-')} is about outputs of `run`: leave it out with --rollouts")
