# SPDX-License-Identifier: Apache-2.0
"""The command `verl-p2r`."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
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
    from verl_p2r.judge.protocol import Judge
    from verl_p2r.plugin.plan.launches import Launch


class Reply(str, Enum):
    """What `judge-eval --reply` takes."""

    explained = "explained"
    single_token = "single_token"
    both = "both"


app = typer.Typer(help="Process-aware reinforcement fine-tuning on verl.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Process-aware reinforcement fine-tuning on verl."""


@app.command()
def doctor(
    config: Annotated[
        str | None, typer.Argument(help="Also check this run: a config's name, or python or torchrun.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides as for verl, or the rest of the command.")
    ] = None,
) -> None:
    """Check what a run will need: driver, GPUs, versions, registrations, shared memory, limits, disk, ports.

    With a config or a command that starts verl, also its GPUs, model, data, media, judge and room for checkpoints:
    LAUNCH='verl-p2r doctor --' MODEL=… bash examples/pa_grpo_7b.sh

    Exits with 1 when something is missing, and with 2 when the config cannot be read.
    """
    from verl_p2r.plugin.doctor import examine

    console = _console()
    with _user_errors(console), console.status("Looking at the machine, and starting verl in a fresh process"):
        findings = list(examine(_launch(config, overrides) if config else None))
    table = Table(box=None)
    for title in ("", "what", "found", "what to do"):
        table.add_column(title, overflow="fold")  # never cut, so that a remedy can be copied
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
    cases: Annotated[
        Path | None, typer.Option(help="Labelled cases, JSONL; by default the package's own, with clips for `visual`.")
    ] = None,
    reply: Annotated[
        Reply | None, typer.Option(help="The judge's `reply`; both: measure the two forms and compare them.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="The most calls in flight.")] = 32,
    price_in: Annotated[float | None, typer.Option(min=0, help="Price of a million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Price of a million completion tokens.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write one result per line to this JSONL file.")] = None,
) -> None:
    """Measure a judge on labelled observations: accuracy, agreement, cost and latency.

    Example: verl-p2r judge-eval --model Qwen/Qwen3-8B --base-url http://localhost:8000/v1 --reply both

    Exits with 1 if a case gets no verdict, and with 2 if the judge or the cases cannot be used.
    """
    from verl_p2r.judge.registry import get_judge
    from verl_p2r.judge.report import Run, compare, show

    console = _console()
    logging.getLogger("verl_p2r").addHandler(logging.NullHandler())  # the report shows what went wrong
    with _user_errors(console), TemporaryDirectory() as held:
        options = _judge_options(name, kwargs, {"model": model, "base_urls": base_url}, concurrency)
        asked = _cases_for(name, options, cases, held)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.touch()
        runs = {}
        for form in _forms(reply):
            judge = get_judge(name, **{**options, **({"reply": form} if form else {})})
            start = time.perf_counter()
            results = _evaluated(console, judge, asked, concurrency)
            runs[form] = results, Run(time.perf_counter() - start, concurrency, price_in, price_out)
    rows = [
        {**({"reply": form} if form else {}), **one.row()} for form, (results, _) in runs.items() for one in results
    ]
    if out is not None:
        out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    for form, (results, run) in runs.items():
        if len(runs) > 1:
            console.print(f"\nreply: {form}", style="bold", highlight=False)
        show(console, results, run)
    if len(runs) > 1:
        console.print()
        compare(console, runs)
    if any(row["verdict"] is None for row in rows):
        raise typer.Exit(1)


def _forms(reply: Reply | None) -> list[str]:
    """List the forms of the reply to measure; an empty text leaves the form to the judge's own options."""
    if reply is Reply.both:
        return [Reply.explained.value, Reply.single_token.value]
    return [reply.value if reply else ""]


def _judge_options(name: str, kwargs: str, flags: dict[str, Any], concurrency: int) -> dict[str, Any]:
    """Merge the judge's options: YAML first, then the flags that were given."""
    options = yaml.safe_load(kwargs) or {}
    if not isinstance(options, dict):
        raise ValueError(f"--kwargs is {kwargs!r}: give a mapping, for example '{{temperature: 0}}'")
    options |= {key: value for key, value in flags.items() if value}
    return {"concurrency": concurrency, **options} if name in ("openai", "visual") else options


def _cases_for(name: str, options: dict[str, Any], path: Path | None, folder: str) -> list[Case]:
    """Load the cases that a judge can read: with facts for `facts`, and by default with clips for `visual`."""
    from verl_p2r.judge.combined import named_judges
    from verl_p2r.judge.evaluation import load_cases

    if path is None and "visual" in dict(named_judges(name, options)):
        from verl_p2r.judge.visual_cases import write_cases

        path = write_cases(Path(folder))
    cases = load_cases(path)
    if name != "facts":
        return cases
    cases = [case for case in cases if case.request.facts]
    if not cases:
        raise ValueError(f"{path}: no case lists facts, which the judge facts needs: add some")
    return cases


def _evaluated(console: Console, judge: Judge, cases: list[Case], concurrency: int) -> list[Result]:
    """Ask the judge about every case, showing progress."""
    from verl_p2r.judge.evaluation import evaluate

    async def run() -> list[Result]:
        try:
            await _reach(judge)
            return await evaluate(judge, cases, concurrency, lambda _: progress.advance(bar))
        finally:
            if hasattr(judge, "aclose"):
                await judge.aclose()

    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"{len(cases)} cases", total=len(cases))
        return asyncio.run(run())


async def _reach(judge: Judge) -> None:
    """Fail early if the server of a model judge is not reachable."""
    from verl_p2r.chat.client import Unanswered

    if hasattr(judge, "reach"):
        try:
            await judge.reach()
        except Unanswered as error:
            raise ValueError(f"the judge: {error}") from None


@app.command()
def plan(
    config: Annotated[str, typer.Argument(help="Name of a config (p2r_ppo, p2r_sft, …), or python or torchrun.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides as for verl, or the rest of the command.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="A100, A100-40GB, H100, H200, L40S (48 GB) or RTX4090 (24 GB).")] = "A100",
    model: Annotated[
        str | None,
        typer.Option(help="A published name, or a folder with the model's shape, if the model's path is not here."),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows of the data to count, if data and model are here.")] = 256,
    response_tokens: Annotated[float | None, typer.Option(min=1, help="Typical tokens of a response.")] = None,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the GPU's peak that training reaches.")] = 0.35,
    judge_seconds: Annotated[float, typer.Option(min=0, help="Seconds of a verdict.")] = 2.0,
    formulas: Annotated[bool, typer.Option(help="Print the formula behind each figure.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if something will not fit.")] = False,
) -> None:
    """Estimate a run before it starts: tokens, memory, bytes, judge calls, time; warn of what will not fit.

    Example: verl-p2r plan --gpu H100 p2r_ppo actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-7B-Instruct

    The scripts in examples/ put $LAUNCH before their command, so this plans a script with its settings:
    LAUNCH='verl-p2r plan --' MODEL=Qwen/Qwen2.5-VL-7B-Instruct bash examples/pa_grpo_7b.sh

    Exits with 2 when the config cannot be read, and with --strict with 1 when there is a warning.
    """
    console = _console()
    with _user_errors(console):
        launch = _launch(config, overrides)

        from verl_p2r.planner import GPUS, Assumed, faults
        from verl_p2r.plugin.plan.from_config import Options, plan_of
        from verl_p2r.plugin.plan.report import show

        assumed = Assumed(mfu=mfu, judge=judge_seconds)
        if gpu not in GPUS:
            raise ValueError(f"--gpu is {gpu!r}: give one of {', '.join(GPUS)}")
        made = plan_of(launch, Options(gpu, model, rows, response_tokens))
    wrong = [*made.faults, *faults(made.job, assumed)]
    show(console, made, wrong, assumed, gpu, formulas)
    if strict and wrong:
        raise typer.Exit(1)


def _launch(config: str, overrides: list[str] | None) -> Launch:
    """Read a launch, before anything imports verl."""
    from verl_p2r.media import torchvision_ops

    torchvision_ops.install()  # as CPU trainers do; no effect with a complete torchvision

    from verl_p2r.plugin.plan.launches import launch_of

    return launch_of(config, overrides or [])


def _console() -> Console:
    """A console on which nothing is folded when the output is a file: commands and paths can be copied from it."""
    console = Console()
    if not console.is_terminal:
        console.width = 1000
    return console


@contextmanager
def _user_errors(console: Console) -> Iterator[None]:
    """Print errors that the user can fix as one line, and exit with 2."""
    try:
        yield
    except (ValueError, OSError, yaml.YAMLError, HydraException, OmegaConfBaseException) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
