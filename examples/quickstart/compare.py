# SPDX-License-Identifier: Apache-2.0
"""Does process-awareness pay? Aggregate the comparison runs over seeds, draw them, and print what came out.

python examples/quickstart/compare.py outputs/compare            # a folder of runs
python examples/quickstart/compare.py outputs/compare/runs.jsonl # its records, without the runs
"""

import json
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
from compare_runs import (
    COLLAPSE,
    Algorithm,
    Runs,
    algorithms_of,
    read_records,
    read_runs,
    records_of,
    summarise,
    write_records,
)
from figures import LABELS, new_figure, save, share_axis
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table
from rich.text import Text
from run_data import PROCESSES, RunError, answer_for, series, validation_mean


def draw(runs: Runs, folder: Path) -> list[Path]:
    """Draw accuracy and collapse over steps: mean over seeds with the band from the lowest to the highest seed."""
    algorithms = algorithms_of(list(runs))
    figure, axes = new_figure(2, width=9.6, height=3.8)
    for axis, process in zip(axes, PROCESSES, strict=True):
        axis.set_title(f"{LABELS[process]} accuracy", loc="left")
        for name, seeds in runs.items():
            points = [dict(zip(*series(m, f"p2r/{process}/accuracy"), strict=True)) for m in seeds.values()]
            _band(axis, algorithms[name], points)
            held_out = _means([validation_mean(m, f"{process}_accuracy") for m in seeds.values()])
            axis.plot(*held_out, "o", mfc="white", color=algorithms[name].colour, ms=6, clip_on=False)
    _legend(figure, runs, Line2D([], [], ls="", marker="o", mfc="white", color="#6b7280", label="held-out items"))
    accuracy = save(figure, folder / "accuracy.png")

    figure, axes = new_figure(3, width=9.6, height=3.4)
    for axis, kind in zip(axes, COLLAPSE, strict=True):
        axis.set_title(f"equal rewards: {LABELS[kind]}", loc="left")
        for name, seeds in runs.items():
            points = [dict(zip(*series(m, f"p2r/collapse/{kind}"), strict=True)) for m in seeds.values()]
            _band(axis, algorithms[name], points, "-" if kind in algorithms[name].learns_from else ":")
    axes[0].set_ylabel("share of groups")
    _legend(figure, runs, Line2D([], [], ls=":", color="#6b7280", label="does not learn from it"))
    return [accuracy, save(figure, folder / "collapse.png")]


def _legend(figure: Figure, runs: Runs, last: Line2D) -> None:
    """One legend for all panels, naming how many seeds each line stands for."""
    lines = [
        Line2D([], [], color=algorithm.colour, label=f"{algorithm.label} (n = {len(runs[name])})")
        for name, algorithm in algorithms_of(list(runs)).items()
    ]
    figure.legend(handles=[*lines, last], loc="outside lower center", ncols=5, fontsize=8)


def _common(points: list[dict[int, float]]) -> dict[int, list[float]]:
    """Values of all seeds at the steps that every seed has."""
    common = sorted(set.intersection(*(set(seed) for seed in points))) if points else []
    return {step: [seed[step] for seed in points] for step in common}


def _means(points: list[dict[int, float]]) -> tuple[list[int], list[float]]:
    """Steps that any seed has, and the means over the seeds that have each; one seed is validated before training."""
    steps = sorted({step for seed in points for step in seed})
    return steps, [fmean(seed[step] for seed in points if step in seed) for step in steps]


def _band(axis: Axes, algorithm: Algorithm, points: list[dict[int, float]], line: str = "-") -> None:
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    share_axis(axis)
    if values := _common(points):
        steps = list(values)
        axis.plot(steps, [fmean(v) for v in values.values()], line, color=algorithm.colour, lw=1.8)
        low, high = ([pick(v) for v in values.values()] for pick in (min, max))
        axis.fill_between(steps, low, high, color=algorithm.colour, alpha=0.13, lw=0)


def table(summary: dict) -> Table:
    """Final accuracies and the collapse of the rewards each algorithm learns from: mean ± sd over seeds, in %."""

    def cell(entry: dict) -> str:
        if entry["mean"] is None:
            return "–"
        return f"{100 * entry['mean']:.1f}" + (f" ± {100 * entry['sd']:.1f}" if entry["sd"] is not None else "")

    result = Table(title="Held-out accuracy after training, %: mean ± sd over n seeds", title_justify="left")
    for name in ("algorithm", "n", "perception", "answer", "collapse of its rewards"):
        result.add_column(name, justify="left" if name == "algorithm" else "right")
    algorithms = algorithms_of(list(summary["algorithms"]))
    for name, entry in summary["algorithms"].items():
        own = ", ".join(cell(entry["collapse"][kind]) for kind in algorithms[name].learns_from)
        result.add_row(entry["label"], str(entry["seeds"]), *(cell(entry["after"][p]) for p in PROCESSES), own)
    before = {
        p: [v for e in summary["algorithms"].values() for v in e["before"][p]["by_seed"].values()] for p in PROCESSES
    }
    if all(before.values()):
        means = ", ".join(f"{answer_for(process)} {100 * fmean(values):.1f}" for process, values in before.items())
        result.caption = f"Before training: {means}. Every data source weighs the same."
    return result


def difference_table(summary: dict) -> Table:
    """Differences of the final accuracies to PA-GRPO over equal seeds, in points, with 95 % intervals."""

    def cell(found: dict) -> str:
        if found["low"] is None:
            return "–" if found["mean"] is None else f"{100 * found['mean']:+.1f}"
        mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
        return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"

    result = Table(title="Difference to PA-GRPO, points: mean [95 % interval] over n pairs", title_justify="left")
    for name in ("algorithm", "n", "perception", "answer"):
        result.add_column(name, justify="left" if name == "algorithm" else "right")
    for entry in summary["algorithms"].values():
        if found := entry.get("difference"):
            result.add_row(entry["label"], str(found["reasoning"]["n"]), *(cell(found[p]) for p in PROCESSES))
    return result


def markdown(table: Table) -> str:
    """Write a table as Markdown, for docs/results/comparison.md.

    >>> print(markdown(Table("algorithm", "n", title="A title")))
    **A title**
    <BLANKLINE>
    | algorithm | n |
    |---|---|
    """
    rows = zip(*(column.cells for column in table.columns), strict=True)
    head = [f"| {' | '.join(str(column.header) for column in table.columns)} |", "|" + "---|" * len(table.columns)]
    body = [f"| {' | '.join([name, *(cell.replace('-', '−') for cell in cells)])} |" for name, *cells in rows]
    caption = ["", str(table.caption)] if table.caption else []
    return "\n".join([f"**{table.title}**", "", *head, *body, *caption])


def main(
    source: Annotated[Path, typer.Argument(help="Folder of the comparison, or its runs.jsonl.")] = Path(
        "outputs/compare"
    ),
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Print the tables; of a folder also write runs.jsonl, summary.json and the PNG curves into it."""
    runs: Runs = {}
    left_out: list[str] = []
    try:
        if source.is_file():
            records = read_records(source)
        else:
            runs, left_out = read_runs(source)
            records = records_of(runs)
        summary = summarise(records, left_out)
    except RunError as error:
        Console(stderr=True, soft_wrap=True).print(Text(f"error: {error}", style="bold red"))
        raise typer.Exit(1) from error
    console = Console()
    for made in (table(summary), difference_table(summary)):
        if as_markdown:
            print(markdown(made), end="\n\n")
        else:
            console.print(made)
    if runs:
        write_records(records, source / "runs.jsonl")
        (source / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        for path in (*draw(runs, source), source / "runs.jsonl", source / "summary.json"):
            console.print(Text(str(path)))
    for line in left_out:
        console.print(Text(f"Left out: {line}", style="yellow"))


if __name__ == "__main__":
    typer.run(main)
