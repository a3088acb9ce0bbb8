# SPDX-License-Identifier: Apache-2.0
"""Does process-awareness pay? Aggregate the comparison runs over seeds, draw them, and print what came out.

python examples/quickstart/compare.py [COMPARE_DIR]
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import typer
from figures import LABELS, new_figure, save, share_axis
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table
from rich.text import Text
from run_data import PROCESSES, Metrics, RunError, answer_for, read_metrics, series, validation_mean

COLLAPSE = (*PROCESSES, "combined")


@dataclass(frozen=True)
class Algorithm:
    """How an algorithm is called and drawn, and the rewards it learns from."""

    label: str
    colour: str
    learns_from: tuple[str, ...]


ALGORITHMS = {
    "pa_grpo": Algorithm("PA-GRPO", "#0f766e", PROCESSES),
    "grpo_reasoning": Algorithm("GRPO reasoning", "#c9741a", ("reasoning",)),
    "grpo_sum": Algorithm("GRPO sum", "#6b7280", ("combined",)),
    "no_separation": Algorithm("no separation", "#8a4fa3", ("combined",)),
}
Runs = dict[str, dict[str, Metrics]]  # algorithm -> seed -> metrics


def read_runs(folder: Path) -> tuple[Runs, list[str]]:
    """Read `<algorithm>/seed<k>/metrics.jsonl`; a run that is missing or stopped early is left out and named.

    Returns:
        The complete runs, and one line per run left out.

    Raises:
        RunError: no run at all, an unknown algorithm, or an unreadable file.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist: run examples/quickstart/compare.sh first.")
    found = {path.parent.relative_to(folder): path for path in sorted(folder.glob("*/seed*/metrics.jsonl"))}
    if not found:
        raise RunError(f"{folder} has no <algorithm>/seed<k>/metrics.jsonl: run examples/quickstart/compare.sh first.")
    if unknown := sorted({run.parts[0] for run in found} - ALGORITHMS.keys()):
        raise RunError(f"{folder / unknown[0]}: unknown algorithm; known are {', '.join(ALGORITHMS)}.")
    metrics = {run: read_metrics(path, "comparison") for run, path in found.items()}
    last = {run: max(validation_mean(values, "reasoning_accuracy"), default=None) for run, values in metrics.items()}
    end = max((step for step in last.values() if step is not None), default=None)
    if end is None:
        raise RunError(f"{folder}: no run has logged a validation accuracy yet.")
    seeds = sorted({run.parts[1] for run in found} | {path.name for path in folder.glob("*/seed*") if path.is_dir()})
    runs: Runs = {name: {} for name in ALGORITHMS}
    left_out = []
    for name in ALGORITHMS:
        for seed in seeds:
            run = Path(name, seed)
            if run not in found:
                left_out.append(f"{run.as_posix()}: no metrics.jsonl")
            elif last[run] != end:
                left_out.append(f"{run.as_posix()}: last validation at step {last[run]}, not {end}")
            else:
                runs[name][seed] = metrics[run]
    return runs, left_out


def summarise(runs: Runs, left_out: list[str]) -> dict:
    """Held-out accuracies before and after, and mean collapse: per algorithm the seeds' values, their mean and sd."""
    algorithms = {}
    for name, seeds in runs.items():
        validated = {
            process: {seed: validation_mean(metrics, f"{process}_accuracy") for seed, metrics in seeds.items()}
            for process in PROCESSES
        }
        collapse = {
            kind: {seed: series(metrics, f"p2r/collapse/{kind}")[1] for seed, metrics in seeds.items()}
            for kind in COLLAPSE
        }
        algorithms[name] = {
            "label": ALGORITHMS[name].label,
            "seeds": len(seeds),
            "before": {p: _over_seeds({k: v[0] for k, v in by.items() if 0 in v}) for p, by in validated.items()},
            "after": {p: _over_seeds({k: v[max(v)] for k, v in by.items() if v}) for p, by in validated.items()},
            "collapse": {c: _over_seeds({k: fmean(v) for k, v in by.items() if v}) for c, by in collapse.items()},
        }
    return {"algorithms": algorithms, "left_out": left_out}


def _over_seeds(by_seed: dict[str, float]) -> dict:
    """Mean and unbiased sd, None where they do not exist."""
    values = list(by_seed.values())
    sd = stdev(values) if len(values) > 1 else None
    return {"mean": fmean(values) if values else None, "sd": sd, "by_seed": by_seed}


def draw(runs: Runs, folder: Path) -> list[Path]:
    """Draw accuracy and collapse over steps: mean over seeds with the band from the lowest to the highest seed."""
    figure, axes = new_figure(2, width=9.6, height=3.8)
    for axis, process in zip(axes, PROCESSES, strict=True):
        axis.set_title(f"{LABELS[process]} accuracy", loc="left")
        for name, seeds in runs.items():
            points = [dict(zip(*series(m, f"p2r/{process}/accuracy"), strict=True)) for m in seeds.values()]
            _band(axis, name, points)
            if held_out := _common([validation_mean(m, f"{process}_accuracy") for m in seeds.values()]):
                means = [fmean(values) for values in held_out.values()]
                axis.plot(list(held_out), means, "o", mfc="white", color=ALGORITHMS[name].colour, ms=6, clip_on=False)
    _legend(figure, runs, Line2D([], [], ls="", marker="o", mfc="white", color="#6b7280", label="held-out items"))
    accuracy = save(figure, folder / "accuracy.png")

    figure, axes = new_figure(3, width=9.6, height=3.4)
    for axis, kind in zip(axes, COLLAPSE, strict=True):
        axis.set_title(f"equal rewards: {LABELS[kind]}", loc="left")
        for name, seeds in runs.items():
            points = [dict(zip(*series(m, f"p2r/collapse/{kind}"), strict=True)) for m in seeds.values()]
            _band(axis, name, points, "-" if kind in ALGORITHMS[name].learns_from else ":")
    axes[0].set_ylabel("share of groups")
    _legend(figure, runs, Line2D([], [], ls=":", color="#6b7280", label="does not learn from it"))
    return [accuracy, save(figure, folder / "collapse.png")]


def _legend(figure: Figure, runs: Runs, last: Line2D) -> None:
    """One legend for all panels, naming how many seeds each line stands for."""
    lines = [
        Line2D([], [], color=ALGORITHMS[name].colour, label=f"{ALGORITHMS[name].label} (n = {len(seeds)})")
        for name, seeds in runs.items()
    ]
    figure.legend(handles=[*lines, last], loc="outside lower center", ncols=5, fontsize=8)


def _common(points: list[dict[int, float]]) -> dict[int, list[float]]:
    """Values of all seeds at the steps that every seed has."""
    common = sorted(set.intersection(*(set(seed) for seed in points))) if points else []
    return {step: [seed[step] for seed in points] for step in common}


def _band(axis: Axes, name: str, points: list[dict[int, float]], line: str = "-") -> None:
    algorithm = ALGORITHMS[name]
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
    for name, entry in summary["algorithms"].items():
        own = ", ".join(cell(entry["collapse"][kind]) for kind in ALGORITHMS[name].learns_from)
        result.add_row(entry["label"], str(entry["seeds"]), *(cell(entry["after"][p]) for p in PROCESSES), own)
    before = {
        p: [v for e in summary["algorithms"].values() for v in e["before"][p]["by_seed"].values()] for p in PROCESSES
    }
    if all(before.values()):
        means = ", ".join(f"{answer_for(process)} {100 * fmean(values):.1f}" for process, values in before.items())
        result.caption = f"Before training: {means}. Every data source weighs the same."
    return result


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the comparison.")] = Path("outputs/compare"),
) -> None:
    """Write summary.json and the PNG curves into the comparison's folder, and print the table."""
    try:
        runs, left_out = read_runs(folder)
    except RunError as error:
        Console(stderr=True, soft_wrap=True).print(Text(f"error: {error}", style="bold red"))
        raise typer.Exit(1) from error
    summary = summarise(runs, left_out)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(table(summary))
    for path in (*draw(runs, folder), folder / "summary.json"):
        console.print(Text(str(path)))
    for line in left_out:
        console.print(Text(f"Left out: {line}", style="yellow"))


if __name__ == "__main__":
    typer.run(main)
