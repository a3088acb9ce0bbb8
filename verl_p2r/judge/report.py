# SPDX-License-Identifier: Apache-2.0
"""The report of `verl-p2r judge-eval`: tables of scores, latency and cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from verl_p2r.judge.evaluation import Result, percentile, score

_COLUMNS = ("cases", "accuracy", "kappa", "false Yes", "false No", "no verdict")
_SHOWN_REASONS = 3


@dataclass(frozen=True)
class Run:
    """How an evaluation was run.

    Args:
        seconds: Wall time of the whole evaluation, in seconds.
        concurrency: The most calls in flight.
        price_in: Price of a million prompt tokens; None: unknown.
        price_out: Price of a million completion tokens; None: unknown.
    """

    seconds: float
    concurrency: int
    price_in: float | None = None
    price_out: float | None = None


def show(console: Console, results: Sequence[Result], run: Run) -> None:
    """Print the report of an evaluation.

    Args:
        console: Where to print.
        results: The results of all cases.
        run: How they were obtained.
    """
    console.print(_scores("problem type", results, lambda result: result.case.request.problem_type))
    console.print(_scores("kind of case", results, lambda result: result.case.kind))
    for line in (_latency(results, run), _cost(results, run)):
        console.print(line, highlight=False, soft_wrap=True)
    for reason in sorted({result.verdict.reason for result in results if result.verdict.value is None})[
        :_SHOWN_REASONS
    ]:
        console.print("[red]no verdict:[/]", end=" ")
        console.print(reason, markup=False, highlight=False, soft_wrap=True)


def compare(console: Console, runs: Mapping[str, tuple[Sequence[Result], Run]]) -> None:
    """Print evaluations of the same cases side by side: quality, latency and cost.

    Args:
        console: Where to print.
        runs: Heading → results and how they were obtained.
    """
    table = Table(box=None)
    table.add_column("reply")
    columns = []
    for heading, (results, run) in runs.items():
        table.add_column(heading, justify="right")
        columns.append(_figures(results, run))
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)


def _figures(results: Sequence[Result], run: Run) -> dict[str, str]:
    cells = dict(zip(_COLUMNS, _cells(results), strict=True))
    seconds = [result.seconds for result in results]
    for share in (0.5, 0.95):
        cells[f"latency, p{100 * share:.0f}"] = f"{percentile(seconds, share):.3f} s"
    calls = max(len(results), 1)
    cells["tokens in, per case"] = f"{sum(result.verdict.prompt_tokens for result in results) / calls:.0f}"
    cells["tokens out, per case"] = f"{sum(result.verdict.completion_tokens for result in results) / calls:.1f}"
    if (money := _money(results, run)) is not None:
        cells["cost of 1,000 calls"] = f"{money / calls * 1000:.4f}"
    return cells


def _money(results: Sequence[Result], run: Run) -> float | None:
    if run.price_in is None and run.price_out is None:
        return None
    return (
        sum(
            result.verdict.prompt_tokens * (run.price_in or 0) + result.verdict.completion_tokens * (run.price_out or 0)
            for result in results
        )
        / 1e6
    )


def _latency(results: Sequence[Result], run: Run) -> str:
    seconds = [result.seconds for result in results]
    shares = ", ".join(f"p{100 * share:.0f} {percentile(seconds, share):.3f} s" for share in (0.5, 0.95, 0.99))
    return f"latency: {shares}; {len(results)} cases in {run.seconds:.2f} s, {run.concurrency} in flight"


def _cost(results: Sequence[Result], run: Run) -> str:
    tokens_in = sum(result.verdict.prompt_tokens for result in results)
    tokens_out = sum(result.verdict.completion_tokens for result in results)
    calls = max(len(results), 1)
    line = f"tokens: {tokens_in} in, {tokens_out} out, {(tokens_in + tokens_out) / calls:.0f} per case"
    money = _money(results, run)
    if money is None:
        return line
    return f"{line}; cost: {money:.6f}, {money / calls * 1000:.4f} per 1,000 calls"


def _scores(title: str, results: Sequence[Result], key: Callable[[Result], str]) -> Table:
    """Make a table of scores with one row per value of a key, and one for all cases."""
    table = Table(box=None)
    table.add_column(title)
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    groups = {name: [r for r in results if key(r) == name] for name in dict.fromkeys(map(key, results))}
    for name, group in [*groups.items(), ("all", results)]:
        table.add_row(name or "-", *_cells(group), style="bold" if name == "all" else None)
    return table


def _cells(results: Sequence[Result]) -> list[str]:
    summary = score(results)
    one_label = len({result.case.label for result in results}) == 1
    return [
        str(summary.cases),
        f"{summary.accuracy:.3f}",
        "-" if math.isnan(summary.kappa) or one_label else f"{summary.kappa:.3f}",
        str(summary.false_yes),
        str(summary.false_no),
        f"{summary.no_verdict / max(summary.cases, 1):.1%}",
    ]
