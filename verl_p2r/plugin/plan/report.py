# SPDX-License-Identifier: Apache-2.0
"""Prints a plan as tables."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from verl_p2r.planner import (
    PHASES,
    Assumed,
    Job,
    Line,
    cache_tokens,
    giga,
    host,
    memory,
    step_time,
    total,
    traffic,
    variants,
)
from verl_p2r.plugin.plan.from_config import Plan
from verl_p2r.sizes import GIB


def show(console: Console, plan: Plan, faults: list[str], assumed: Assumed, gpu: str, formulas: bool) -> None:
    """Print a plan and the warnings about it.

    Args:
        console: to print on.
        plan: the plan.
        faults: warnings.
        assumed: assumed figures.
        gpu: name of the GPU.
        formulas: print how each figure is computed.
    """
    job = plan.job
    trained = f", {giga(job.trained)} trained" if job.trained != job.shape.params else ""
    console.print(
        f"[bold]{plan.shape_source}[/]: {giga(job.shape.params)} parameters, {giga(job.shape.vision_params)} "
        f"of them vision{trained}; {job.engine.gpus} × {gpu} train, a step has {_of_a_step(job)}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_lines("Tokens of a row", plan.tokens, formulas))
    console.print(_memory(job, assumed, formulas))
    if job.rollout is not None:
        tokens, how = cache_tokens(job, assumed)
        rows = tokens / job.lengths.row
        cache = Line("tokens in the cache of a vLLM server", tokens, "tokens", f"{how}; about {rows:.0f} usual rows")
        console.print(_lines("Sampling", [cache], formulas))
    console.print(_lines("Memory of a node", host(job), formulas))
    console.print(_lines("Moved in a step", traffic(job), formulas))
    if job.judge is not None:
        how = f"{job.prompts} prompts × {job.samples}, at most: guarded and cached verdicts need none"
        console.print(_lines("Judge", [Line("calls of a step", job.judge.calls, "calls", how)], formulas))
    console.print(_lines("Time of a step", step_time(job, assumed), formulas))
    if job.rollout is not None:
        console.print(_variants(job, assumed))
    console.print(
        f"Assumed, not measured: {assumed.mfu:.0%} of {job.gpu.operations / 1e12:.0f} T operations/s, "
        f"{assumed.decoding:.0%} of {job.gpu.bandwidth / 1e12:.2f} TB/s in sampling, {assumed.judge:g} s a verdict.",
        highlight=False,
        style="dim",
    )
    for fault in faults:
        console.print("[yellow]warn[/]", end=" ")
        console.print(fault, markup=False, highlight=False, soft_wrap=True)


def _of_a_step(job: Job) -> str:
    return f"{job.prompts} prompts × {job.samples} responses" if job.rollout else f"{job.prompts} rows"


def _lines(title: str, lines: Iterable[Line], formulas: bool) -> Table:
    table = Table(title=title, box=None, title_justify="left", title_style="bold")
    table.add_column("what")
    table.add_column("", justify="right", no_wrap=True)
    if formulas:
        table.add_column("formula", overflow="fold", style="dim")
    for line in lines:
        table.add_row(line.name, amount(line.value, line.unit), *([line.formula] if formulas else []))
    return table


def _memory(job: Job, assumed: Assumed, formulas: bool) -> Table:
    phases = PHASES if job.rollout else ("update",)
    lines = memory(job, assumed)
    title = f"Memory of a GPU, GiB of {job.gpu.memory / GIB:.1f}"
    table = Table(title=title, box=None, title_justify="left", title_style="bold")
    table.add_column("what")
    for phase in phases:
        table.add_column(phase, justify="right", no_wrap=True)
    if formulas:
        table.add_column("formula", overflow="fold", style="dim")
    for line in lines:
        cells = [f"{line.value / GIB:.1f}" if phase in line.phases else "" for phase in phases]
        table.add_row(line.name, *cells, *([line.formula] if formulas else []))
    sums = [total(lines, phase) for phase in phases]
    marked = [f"[{'red' if used > job.gpu.memory else 'green'}]{used / GIB:.1f}[/]" for used in sums]
    table.add_row("together", *marked, *([""] if formulas else []), style="bold")
    return table


def _variants(job: Job, assumed: Assumed) -> Table:
    """Compare the job with what it would be with and without a shared prefix and kept features."""
    title = "With and without trainer.p2r.shared_prefix"
    table = Table(title=title, box=None, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("what")
    for column in ("step", "passes", "GPU in update", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for name, variant in variants(job):
        lines = {line.name: line.value for line in step_time(variant, assumed)}
        passes = sum(lines.get(part, 0.0) for part in ("old log-prob", "reference log-prob", "update"))
        update = total(memory(variant, assumed), "update")
        table.add_row(
            name,
            amount(lines["a step"], "s"),
            amount(passes, "s"),
            amount(update, "B"),
            "this launch" if _equal(variant, job) else "",
        )
    if job.engine.ulysses_size > 1:
        table.caption = "The shared prefix is not built for ulysses_sequence_parallel_size > 1."
    return table


def _equal(variant: Job, job: Job) -> bool:
    """Compare in what `variants` changes; without a frozen tower no feature is kept, whatever the setting."""
    features = job.engine.features > 0 and job.engine.frozen_vision
    return variant.engine.shares_prefix == job.engine.shares_prefix and (variant.engine.features > 0) == features


def amount(value: float, unit: str) -> str:
    """Format a number with its unit, in about three digits.

    Args:
        value: the number.
        unit: `tokens`, `B`, `calls`, `s` or `h`.
    """
    if unit == "B":
        return f"{value / GIB:.1f} GiB" if value >= 0.1 * GIB else f"{value / 2**20:.1f} MiB"
    return f"{value:,.0f} {unit}" if value >= 100 or unit in ("tokens", "calls") else f"{value:.1f} {unit}"
