# SPDX-License-Identifier: Apache-2.0
"""The pictures of a run, each one PNG; one colour per process throughout, as in the report's tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from run_data import PROCESSES, Comparison, Metrics, answer_for, series, validation_mean

from data_tools.look.stats_plots import COLOURS as OF_DATA
from data_tools.look.stats_plots import STYLE

COLOURS = {
    **{process: OF_DATA[process] for process in PROCESSES},
    "combined": "#6b7280",
    "training": "#9ca3af",
    "validation": "#111827",
}
LABELS = {"perception": "perception", "reasoning": "reasoning", "combined": "sum of both (GRPO)"}
plt.rcParams.update(STYLE)


def new_figure(columns: int = 1, width: float = 4.8, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` panels in the house style; sizes in inches."""
    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained")
    return figure, list(axes[0])


def save(figure: Figure, path: Path) -> Path:
    """Write a figure and free it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path


def share_axis(axis: Axes) -> None:
    """Show 0 to 1 as percentages."""
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def curves(metrics: Metrics, keys: Mapping[str, str], path: Path, *, share: bool = False, val: str = "") -> Path | None:
    """Draw training metrics over steps, one line per name in `keys` (name -> metric).

    Args:
        metrics: values by name and step.
        keys: name in the legend → metric.
        path: the file to write.
        share: the values are shares; draw them from 0 to 100 %.
        val: suffix of the validation metric `<name>_<val>` to mark with open circles; none if empty.

    Returns:
        The file, or None when the run logged none of these metrics.
    """
    lines = {name: series(metrics, key) for name, key in keys.items()}
    if not any(steps for steps, _ in lines.values()):
        return None
    figure, (axis,) = new_figure()
    for name, (steps, values) in lines.items():
        colour = COLOURS.get(name, "#374151")
        dashed = "--" if name == "combined" else "-"
        axis.plot(steps, values, dashed, color=colour, label=LABELS.get(name, name), lw=1.8, marker=".", ms=4)
        if val and (points := validation_mean(metrics, f"{name}_{val}")):
            axis.plot(list(points), list(points.values()), "o", mfc="white", color=colour, ms=6, clip_on=False)
    if val:
        axis.plot([], [], "o", mfc="white", color="#6b7280", label="held-out items")
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if share:
        share_axis(axis)
    else:
        axis.set_ylim(bottom=0)
    axis.legend(loc="best")
    return save(figure, path)


def before_after(rows: Sequence[Comparison], path: Path) -> Path | None:
    """Draw accuracies before and after RL as bars with their 95 % intervals; None without rows."""
    if not rows:
        return None
    figure, (axis,) = new_figure(height=3.1)
    for place, row in enumerate(rows):
        for share, shift, alpha, ink in ((row.before, -0.19, 0.4, "#111827"), (row.after, 0.19, 1.0, "white")):
            error = [[share.mean - share.low], [share.high - share.mean]]
            axis.bar(place + shift, share.mean, 0.36, color=COLOURS[row.process], alpha=alpha)
            axis.errorbar(place + shift, share.mean, error, color="#374151", capsize=2.5, lw=1)
            axis.text(place + shift, 0.03, f"{100 * share.mean:.0f}", ha="center", color=ink, fontsize=8)
    axis.set_xticks(range(len(rows)), [f"{answer_for(row.process)}\n{row.mode}" for row in rows])
    axis.grid(axis="x", visible=False)
    share_axis(axis)
    axis.set_ylim(0, 1.03)
    return save(figure, path)


def run_figures(rl: Metrics, sft: Metrics, rows: Sequence[Comparison], folder: Path) -> dict[str, Path]:
    """Draw every picture of a run for which it has the numbers: name -> file."""

    def per_process(metric: str) -> dict[str, str]:
        return {process: f"p2r/{process}/{metric}" for process in PROCESSES}

    collapse = {name: f"p2r/collapse/{name}" for name in (*PROCESSES, "combined")}
    drawn = {
        "before_after": before_after(rows, folder / "before_after.png"),
        "rewards": curves(rl, per_process("reward"), folder / "rewards.png", val="reward"),
        "accuracy": curves(rl, per_process("accuracy"), folder / "accuracy.png", share=True, val="accuracy"),
        "format": curves(rl, per_process("format"), folder / "format.png", share=True, val="format"),
        "lengths": curves(rl, per_process("tokens"), folder / "lengths.png", val="tokens"),
        "collapse": curves(rl, collapse, folder / "collapse.png", share=True),
        "sft_loss": curves(sft, {"training": "train/loss", "validation": "val/loss"}, folder / "sft_loss.png"),
    }
    return {name: path for name, path in drawn.items() if path}
