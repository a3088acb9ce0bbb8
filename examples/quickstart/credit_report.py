# SPDX-License-Identifier: Apache-2.0
"""Draw and print what `credit.py` measured.

    python examples/quickstart/credit_report.py outputs/credit/credit.json

draws `credit.png` next to the file and prints Markdown tables, from which docs/concepts/credit.md is made.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import typer
from figures import save
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DRAWN = {
    "PA-GRPO": "#0f766e",
    "sum": "#8a4fa3",
    "reasoning only": "#c9741a",
    "λ = 0.25": "#93c5fd",
    "λ = 0.5": "#3b82f6",
    "λ = 1": "#1e3a8a",
}
"""Rules in the figure with their colours; the tables have all."""
PANELS = {"cosine": "expected cosine of a step, × 100", "snr": "signal-to-noise of a group, × 1000"}


def level_name(flipped: dict[str, float]) -> str:
    """Name a noise level.

    >>> level_name({"verdicts": 0.3, "answers": 0.0}), level_name({"verdicts": 0.0, "answers": 0.0})
    ('30 % of verdicts flipped', 'clean')
    """
    parts = [f"{100 * share:.0f} % of {what}" for what, share in flipped.items() if share]
    return " and ".join(parts) + " flipped" if parts else "clean"


def cell(interval: list[float | None], signed: bool = False) -> str:
    """Write an estimate with its 95 % interval.

    >>> cell([1.25, -0.04, 2.6], signed=True), cell([None] * 3)
    ('+1.2 [0.0, 2.6]', 'n/a')
    """
    if None in interval:
        return "n/a"
    value, low, high = (round(number, 1) + 0.0 for number in interval)
    return f"{value:{'+' if signed else ''}.1f} [{low:.1f}, {high:.1f}]".replace("-", "−")


def tables(result: dict) -> Iterator[str]:
    """Yield Markdown: for each checkpoint a table of the rules and one of the four parts."""
    for name, entry in result["checkpoints"].items():
        levels = entry["levels"]
        heads = [level_name(level["flipped"]) for level in levels]
        yield f"\n{name}: {entry['prompts']} prompts × {result['samples']} responses; " + (
            f"perception {100 * entry['perception']:.0f} %, answer {100 * entry['answer']:.0f} %\n"
        )
        yield f"| cosine of a step × 100 | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}"
        for number, rule in enumerate(levels[0]["rules"]):
            key, signed = ("difference", True) if number else ("cosine", False)
            yield f"| {rule} | " + " | ".join(cell(level["rules"][rule][key], signed) for level in levels) + " |"
        yield f"\n| SNR of a group × 1000 | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}"
        for kind in ("rules", "parts"):
            for rule in levels[0][kind]:
                yield f"| {rule} | " + " | ".join(cell(level[kind][rule]["snr"]) for level in levels) + " |"


def draw(result: dict, path: Path) -> Path:
    """Draw cosine and signal-to-noise: a column for each checkpoint, a group of points for each noise level."""
    checkpoints = result["checkpoints"]
    figure, axes = plt.subplots(
        len(PANELS),
        len(checkpoints),
        figsize=(4.8 * len(checkpoints), 6.2),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    for column, (name, entry) in enumerate(checkpoints.items()):
        for axis, (key, label) in zip(axes[:, column], PANELS.items(), strict=True):
            _points(axis, entry["levels"], key)
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(f"{name} (n = {entry['prompts']} prompts)", loc="left")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(DRAWN), fontsize=8)
    return save(figure, path)


def _points(axis: Axes, levels: list[dict], key: str) -> None:
    for number, (rule, colour) in enumerate(DRAWN.items()):
        intervals = [[math.nan if n is None else n for n in level["rules"][rule][key]] for level in levels]
        value, low, high = zip(*intervals, strict=True)
        places = [place + 0.12 * (number - (len(DRAWN) - 1) / 2) for place in range(len(levels))]
        spread = [[v - lo for v, lo in zip(value, low, strict=True)], [h - v for v, h in zip(value, high, strict=True)]]
        axis.errorbar(places, value, spread, fmt="o", color=colour, ms=4.5, capsize=2.5, lw=1.2, label=rule)
    axis.set_xticks(
        range(len(levels)), [level_name(level["flipped"]).replace(" flipped", "\nflipped") for level in levels]
    )
    axis.axhline(0, color="#9ca3af", lw=0.8)
    axis.grid(axis="x", visible=False)


def main(result: Path) -> None:
    """Draw `credit.png` next to RESULT, a credit.json, and print its tables as Markdown."""
    found = json.loads(result.read_text(encoding="utf-8"))
    print("\n".join(tables(found)))
    print(f"\n{result}\n{draw(found, result.with_suffix('.png'))}")


if __name__ == "__main__":
    typer.run(main)
