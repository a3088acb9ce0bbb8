# SPDX-License-Identifier: Apache-2.0
"""Explain a finished quickstart run: report.html, PNG curves, and one screen of results.

python examples/quickstart/report.py [RUN_DIR]
"""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import jinja2
import typer
from figures import COLOURS, run_figures
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from run_data import (
    PROCESSES,
    Comparison,
    Metrics,
    Rollout,
    RunError,
    answer_for,
    comparisons,
    instructive_rollout,
    is_number,
    read_metrics,
    series,
    validation,
)

GAIN_TARGET = {"sampled": 25.0, "greedy": 10.0}  # percentage points
ITEMS_TARGET = 128
CORRELATION = "training/rollout_actor_probs_pearson_corr"
CORRELATION_TARGET = 0.999
MINUTES_TARGET = 15.0

# What a reader should look for, in the order of the page.
CAPTIONS = {
    "rewards": ("Rewards", "Mean reward of each process: accuracy + format + length."),
    "accuracy": ("Accuracy", "Facts stated correctly (perception) and answers correct (reasoning), sampled."),
    "format": ("Format", "Share of responses whose segment follows the template."),
    "lengths": ("Segment lengths", "Mean length in tokens."),
    "collapse": ("Advantage collapse", "Share of groups whose rewards are all equal, so that they teach nothing."),
    "sft_loss": ("SFT loss", "The supervised stage that RL starts from, left half-learned on purpose."),
}


@dataclass(frozen=True)
class Check:
    """One target of the quickstart and what the run reached."""

    label: str
    value: str
    target: str
    passed: bool


@dataclass(frozen=True)
class Report:
    """Everything the page and the screen show."""

    run_dir: Path
    rows: list[Comparison]
    checks: list[Check]
    timings: list[tuple[str, str]]
    sources: list[dict]
    rollout: Rollout | None
    figures: dict[str, Path]
    notes: list[str]


def build(run_dir: Path) -> Report:
    """Read a run and draw its figures; optional parts that are missing become notes.

    Raises:
        RunError: no run there, no RL metrics, or an unreadable file.
    """
    if not run_dir.is_dir():
        raise RunError(f"{run_dir} does not exist: `make quickstart` makes a run, or name another run's folder.")
    rl = read_metrics(run_dir / "rl" / "metrics.jsonl", "RL")
    notes: list[str] = []
    sft: Metrics = {}
    try:
        sft = read_metrics(run_dir / "sft" / "metrics.jsonl", "SFT")
    except RunError as error:
        notes.append(f"No SFT curve: {error}")
    rows = comparisons(run_dir, notes)
    rollout = instructive_rollout(run_dir / "rl" / "rollouts")
    if rollout is None:
        notes.append(f"No rollout to show: {run_dir / 'rl' / 'rollouts'} holds no <step>.jsonl; run the RL stage.")
    stages = _stage_seconds(run_dir / "timings.json")
    figures = run_figures(rl, sft, rows, run_dir / "figures")
    if undrawn := [name for name in CAPTIONS if name not in figures and name != "sft_loss"]:
        notes.append(f"Not logged by this run, so not drawn: {', '.join(undrawn)}.")
    checks = _checks(rows, rl, stages)
    return Report(run_dir, rows, checks, _timings(rl, stages), _sources(rl), rollout, figures, notes)


def _stage_seconds(path: Path) -> dict[str, float]:
    """Wall-clock seconds per stage, if the run wrote them."""
    if not path.is_file():
        return {}
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: not JSON ({error.msg}). Delete it: only the time per stage is lost.") from error
    if not isinstance(stages, dict) or not all(is_number(seconds) for seconds in stages.values()):
        raise RunError(f"{path}: expected {{stage: seconds}}. Delete it: only the time per stage is lost.")
    return stages


def _checks(rows: list[Comparison], rl: Metrics, stages: dict[str, float]) -> list[Check]:
    checks = []
    for row in rows:
        target = GAIN_TARGET[row.mode]
        label = f"{answer_for(row.process)}, {row.mode}"
        checks.append(Check(label, f"{row.gain:+.1f} points", f"≥ +{target:.0f}", row.gain >= target))
    if rows:
        items = min(share.n for row in rows for share in (row.before, row.after))
        checks.append(Check("held-out items", str(items), f"≥ {ITEMS_TARGET}", items >= ITEMS_TARGET))
    steps, correlations = series(rl, CORRELATION)
    if steps:
        lowest = min(correlations)
        passed = lowest >= CORRELATION_TARGET
        checks.append(Check("trainer–rollout correlation, lowest", f"{lowest:.5f}", f"≥ {CORRELATION_TARGET}", passed))
    if "data" in stages:  # without the first stage's time, a damaged file has lost those of the first ones
        minutes = sum(stages.values()) / 60
        passed = minutes <= MINUTES_TARGET
        checks.append(Check("all stages", f"{minutes:.1f} min", f"≤ {MINUTES_TARGET:.0f} min", passed))
    return checks


def _timings(rl: Metrics, stages: dict[str, float]) -> list[tuple[str, str]]:
    timings = [(f"{stage} stage", f"{seconds:.0f} s") for stage, seconds in stages.items()]
    step, generation = (series(rl, f"timing_s/{name}")[1] for name in ("step", "gen"))
    if step:
        each = f"{len(step)} × {fmean(step):.1f} s"
        timings.append(("RL steps", each + (f", {fmean(generation):.1f} s of it sampling" if generation else "")))
    return timings


def _sources(rl: Metrics) -> list[dict]:
    """First and last validation per data source, from the trainer's own metrics."""
    table: dict[str, dict] = {}
    for process in PROCESSES:
        steps = validation(rl, f"{process}_accuracy")
        if 0 in steps and len(steps) > 1:
            first, last = steps[0], steps[max(steps)]
            for source in sorted(first.keys() & last.keys()):
                table.setdefault(source, {"source": source})[process] = (first[source], last[source])
    return list(table.values())


def render(report: Report) -> str:
    """The page, self-contained: pictures as data URIs, styles inline, model output escaped."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    environment.filters["signed"] = lambda number: "–" if number is None else f"{number:+.2f}".replace("-", "−")
    images = {
        name: "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        for name, path in report.figures.items()
    }
    return environment.get_template("report.html.j2").render(
        report=report,
        images=images,
        captions=CAPTIONS,
        colours=COLOURS,
        answer_for=answer_for,
        segments=_segments(report.rollout) if report.rollout else [],
        prompt=_prompt(report.rollout) if report.rollout else "",
    )


def _prompt(rollout: Rollout) -> str:
    return re.sub(r"(?:<\|(?:video|image)_pad\|>)+", "[video]", str(rollout.row["input"])).strip()


def _segments(rollout: Rollout) -> list[dict]:
    """The tokens of the rollout by segment, each with its advantage and a shade whose opacity is its magnitude."""
    row = rollout.row
    cut = row["perception_tokens"]
    largest = max((abs(value) for value in row["advantages"]), default=0.0) or 1.0
    tokens = [
        {
            "text": text,
            "title": f"token {place} · {'perception' if place < cut else 'reasoning'} · advantage {value:+.3f}",
            "rgb": "22,140,105" if value > 0 else "205,60,60",
            "alpha": f"{0.42 * abs(value) / largest:.3f}",
        }
        for place, (text, value) in enumerate(zip(row["tokens"], row["advantages"], strict=True))
    ]
    parts = zip(PROCESSES, (tokens[:cut], tokens[cut:]), strict=True)
    return [
        {
            "process": name,
            "tokens": part,
            "advantage": rollout.advantage(name),
            "verdict": _verdict(row[f"{name}_accuracy"]),
        }
        for name, part in parts
    ]


def _verdict(accuracy: float | None) -> str:
    if not is_number(accuracy):
        return "no verdict"
    return {0.0: "wrong", 1.0: "right"}.get(accuracy, f"accuracy {accuracy:.2f}")


def screen(report: Report) -> Group:
    """One screen: before and after, targets, timings, paths."""
    table = Table(title="Accuracy on held-out items, % [95 % interval]", title_justify="left", expand=False)
    for name in ("", "before RL", "after RL", "gain", "n"):
        table.add_column(name, justify="left" if not name else "right")
    for row in report.rows:
        cells = (f"{100 * s.mean:5.1f} \\[{100 * s.low:.0f}–{100 * s.high:.0f}]" for s in (row.before, row.after))
        sizes = {row.before.n, row.after.n}
        count = "/".join(str(n) for n in sorted(sizes))
        table.add_row(f"{answer_for(row.process)}, {row.mode}", *cells, f"{row.gain:+.1f}", count)
    checks = Table.grid(padding=(0, 2))
    for check in report.checks:
        mark = Text("met", style="green") if check.passed else Text("missed", style="bold red")
        checks.add_row(mark, check.label, check.value, Text(check.target, style="dim"))
    details = Table.grid(padding=(0, 2))
    details.add_column(no_wrap=True)
    details.add_column(overflow="fold")
    for label, value in report.timings:
        details.add_row(label, value)
    details.add_row("report", str(report.run_dir / "report.html"))
    details.add_row("curves", str(report.run_dir / "figures"))
    parts: list[RenderableType] = [table] if report.rows else []
    parts += [Text("\nTargets", style="bold"), checks] if report.checks else []
    notes = [Text(f"Note: {note}", style="yellow") for note in report.notes]
    return Group(*parts, Text(), details, *notes)


def main(
    run_dir: Annotated[Path, typer.Argument(help="Folder of the run.")] = Path("outputs/quickstart"),
) -> None:
    """Write RUN_DIR/report.html and RUN_DIR/figures/, and print the results."""
    try:
        report = build(run_dir)
    except RunError as error:
        Console(stderr=True, soft_wrap=True).print(Text(f"error: {error}", style="bold red"))
        raise typer.Exit(1) from error
    (run_dir / "report.html").write_text(render(report), encoding="utf-8")
    Console().print(screen(report))


if __name__ == "__main__":
    typer.run(main)
