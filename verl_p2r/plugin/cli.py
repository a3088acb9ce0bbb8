# SPDX-License-Identifier: Apache-2.0
"""The command `verl-p2r`."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from verl_p2r.judge.evaluation import Case, Result

app = typer.Typer(help="Process-aware reinforcement fine-tuning on verl.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Process-aware reinforcement fine-tuning on verl."""


@app.command()
def doctor() -> None:
    """Check the installation: versions, registrations in a fresh process, platform and rollout.

    Exits with 1 when something is missing.
    """
    from verl_p2r.plugin.doctor import examine

    console = Console()
    with console.status("Starting verl in a fresh process"):
        findings = examine()
    table = Table(box=None)
    for title in ("", "what", "found", "what to do"):
        table.add_column(title, overflow="fold")  # never cut: a remedy is there to be copied
    for finding in findings:
        mark = "[green]ok" if not finding.remedy else "[red]fail" if finding.fatal else "[yellow]warn"
        table.add_row(mark, finding.what, finding.found, finding.remedy)
    console.print(table)
    if any(finding.remedy and finding.fatal for finding in findings):
        raise typer.Exit(1)


@app.command()
def judge_eval(
    name: Annotated[str, typer.Argument(help="A registered judge, or module:Class.")] = "openai",
    model: Annotated[str | None, typer.Option(help="The judge's `model`.")] = None,
    base_url: Annotated[list[str] | None, typer.Option(help="One of the judge's `base_urls`; may be repeated.")] = None,
    kwargs: Annotated[str, typer.Option(help="More options of the judge as YAML, as in algorithm.p2r.judge.")] = "{}",
    cases: Annotated[Path | None, typer.Option(help="Labelled cases, JSONL; by default the package's own.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls in flight.")] = 32,
    price_in: Annotated[float | None, typer.Option(min=0, help="Money per million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Money per million completion tokens.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write one result a line here, JSONL.")] = None,
) -> None:
    """Measure a judge on labelled observations: accuracy, agreement, cost and latency.

    Example: verl-p2r judge-eval --model Qwen/Qwen3-8B --base-url http://localhost:8000/v1

    Exits with 1 when a case stays without a verdict, and with 2 when the judge or the cases cannot be used.
    """
    from verl_p2r.judge import get_judge
    from verl_p2r.judge.evaluation import load_cases

    console = Console()
    logging.getLogger("verl_p2r").addHandler(logging.NullHandler())  # what goes wrong is in the report
    try:
        options = yaml.safe_load(kwargs) or {}
        if not isinstance(options, dict):
            raise ValueError(f"--kwargs is {kwargs!r}: give a mapping, for example '{{temperature: 0}}'")
        options |= {key: value for key, value in (("model", model), ("base_urls", base_url)) if value}
        if name == "openai":
            options.setdefault("concurrency", concurrency)
        asked = load_cases(cases)
        if name == "facts":
            asked = [case for case in asked if case.request.facts]
            if not asked:
                raise ValueError(f"{cases}: no case lists facts, and the judge facts reads nothing else: add some")
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.touch()
        judge = get_judge(name, **options)
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task(f"{len(asked)} cases", total=len(asked))
            start = time.perf_counter()
            results = asyncio.run(_evaluate(judge, asked, concurrency, lambda _result: progress.advance(bar)))
            seconds = time.perf_counter() - start
    except (ValueError, OSError, yaml.YAMLError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    if out is not None:
        out.write_text("".join(json.dumps(result.row(), ensure_ascii=False) + "\n" for result in results), "utf-8")
    _show(console, results, seconds, concurrency, price_in, price_out)
    if any(result.verdict.value is None for result in results):
        raise typer.Exit(1)


@app.command()
def plan(
    config: Annotated[str, typer.Argument(help="Name of a config (p2r_ppo, p2r_sft, …), or python or torchrun.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides as for verl, or the rest of the command.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="A100, A100-40GB, H100 or H200.")] = "A100",
    model: Annotated[
        str | None,
        typer.Option(help="A published name or a folder with the model's shape, where its path is not there."),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=0, help="Rows of the data to count, where they and the model are here.")
    ] = 256,
    response_tokens: Annotated[float | None, typer.Option(min=1, help="Usual tokens of a response.")] = None,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the GPU's peak that training reaches.")] = 0.35,
    judge_seconds: Annotated[float, typer.Option(min=0, help="Seconds of a verdict.")] = 2.0,
    formulas: Annotated[bool, typer.Option(help="Print where each figure comes from.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when something will not fit.")] = False,
) -> None:
    """Estimate a run before it starts: tokens, memory, bytes, judge calls, time; warn of what will not fit.

    Example: verl-p2r plan --gpu H100 p2r_ppo actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-7B-Instruct

    The scripts in examples/ put $LAUNCH before their command, so this plans a script with its settings:
    LAUNCH='verl-p2r plan --' MODEL=Qwen/Qwen2.5-VL-7B-Instruct bash examples/pa_grpo_7b.sh

    Exits with 2 when the config cannot be read, and with --strict with 1 when there is a warning.
    """
    from verl_p2r.media import torchvision_ops

    torchvision_ops.install()  # as for the trainers on a CPU; does nothing where torchvision is whole

    from verl_p2r.planner import GPUS, Assumed, faults
    from verl_p2r.plugin.plan.from_config import Options, plan_of
    from verl_p2r.plugin.plan.launches import launch_of
    from verl_p2r.plugin.plan.report import show

    console = Console()
    assumed = Assumed(mfu=mfu, judge=judge_seconds)
    try:
        if gpu not in GPUS:
            raise ValueError(f"--gpu is {gpu!r}: give one of {', '.join(GPUS)}")
        launch = launch_of(config, overrides or [])
        made = plan_of(launch, Options(gpu, model, rows, response_tokens))
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    wrong = [*made.faults, *faults(made.job, assumed)]
    show(console, made, wrong, assumed, gpu, formulas)
    if strict and wrong:
        raise typer.Exit(1)


async def _evaluate(judge: Any, cases: list[Case], concurrency: int, done: Callable[[Result], object]) -> list[Result]:
    from verl_p2r.chat.client import Unanswered
    from verl_p2r.judge.evaluation import evaluate
    from verl_p2r.judge.openai_judge import OpenAIJudge

    try:
        if isinstance(judge, OpenAIJudge):
            try:
                await judge.reach()
            except Unanswered as error:
                raise ValueError(f"the judge: {error}") from None
        return await evaluate(judge, cases, concurrency, done)
    finally:
        if hasattr(judge, "aclose"):
            await judge.aclose()


def _show(
    console: Console,
    results: list[Result],
    seconds: float,
    concurrency: int,
    price_in: float | None,
    price_out: float | None,
) -> None:
    from verl_p2r.judge.evaluation import percentile

    console.print(_scores("problem type", results, lambda result: result.case.request.problem_type))
    console.print(_scores("kind of case", results, lambda result: result.case.kind))
    taken = [result.seconds for result in results]
    spent, made = (
        sum(getattr(result.verdict, name) for result in results) for name in ("prompt_tokens", "completion_tokens")
    )
    console.print(
        f"latency: p50 {percentile(taken, 0.5):.3f} s, p95 {percentile(taken, 0.95):.3f} s, "
        f"p99 {percentile(taken, 0.99):.3f} s; {len(results)} cases in {seconds:.2f} s, {concurrency} in flight",
        highlight=False,
        soft_wrap=True,
    )
    cost = f"tokens: {spent} in, {made} out, {(spent + made) / max(len(results), 1):.0f} a case"
    if price_in is not None or price_out is not None:
        money = (spent * (price_in or 0) + made * (price_out or 0)) / 1e6
        cost += f"; cost: {money:.6f}, {money / max(len(results), 1) * 1000:.4f} for 1,000 calls"
    console.print(cost, highlight=False, soft_wrap=True)
    for reason in sorted({result.verdict.reason for result in results if result.verdict.value is None})[:3]:
        console.print("[red]no verdict:[/]", end=" ")
        console.print(reason, markup=False, highlight=False, soft_wrap=True)


def _scores(title: str, results: list[Result], key: Callable[[Result], str]) -> Table:
    """A table of scores with one row for each value of a key, and one for all."""
    from verl_p2r.judge.evaluation import score

    table = Table(box=None)
    table.add_column(title)
    for column in ("cases", "accuracy", "kappa", "false Yes", "false No", "no verdict"):
        table.add_column(column, justify="right")
    groups = {name: [r for r in results if key(r) == name] for name in dict.fromkeys(map(key, results))}
    for name, group in [*groups.items(), ("all", results)]:
        s, one_label = score(group), len({result.case.label for result in group}) == 1
        table.add_row(
            name or "-",
            str(s.cases),
            f"{s.accuracy:.3f}",
            "-" if math.isnan(s.kappa) or one_label else f"{s.kappa:.3f}",
            str(s.false_yes),
            str(s.false_no),
            f"{s.no_verdict / max(s.cases, 1):.1%}",
            style="bold" if name == "all" else None,
        )
    return table
