# SPDX-License-Identifier: Apache-2.0
"""Draws the statistics of records: types by modality, sources, segment lengths, keep rate of each step."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from data_tools.look.stats import PROCESSES, Stats, left_out, quantile, top_sources
from data_tools.records.folders import whole_files
from verl_p2r.accuracy import problem_types
from verl_p2r.settings import LengthBand, P2RSettings

# One colour per process, as in the quickstart's report.
COLOURS = {
    "image": "#c9a227",
    "video": "#3d7ea6",
    "perception": "#2f6fb2",
    "reasoning": "#c9741a",
    "left out": "#e3e6eb",
}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#4b5563",
    "axes.titlesize": 10,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "axes.grid": True,
    "grid.color": "#eceef1",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.1,  # inches
    "figure.constrained_layout.w_pad": 0.1,
    "savefig.dpi": 160,
    "text.parse_math": False,  # dollars in names are not math
}
BINS = 60  # bins of a histogram
NAME = 40  # characters shown of a name
REASONS = 3  # reasons shown of a step

_SOFT = "#5b6472"


def write_plots(stats: Stats, folder: Path) -> list[Path]:
    """Draw every plot for which there are numbers.

    Args:
        stats: the numbers.
        folder: for `types.png`, `sources.png`, with lengths `lengths.png` and with earlier steps `keep_rate.png`;
            earlier files of these names are replaced, or removed where there is nothing to draw.

    Returns:
        The files.

    Raises:
        ValueError: a file is not a regular one, or another process is writing them.
        OSError: a file cannot be written; earlier ones stay.
    """
    drawings: dict[str, tuple[Any, Callable[[Stats], Figure]]] = {
        "types": (stats.types, _types),
        "sources": (stats.sources, _sources),
        "lengths": (any(stats.lengths.values()), _lengths),
        "keep_rate": (stats.history, _keep_rate),
    }
    drawn = [name for name, (numbers, _) in drawings.items() if numbers]
    with whole_files(folder, "plots") as partial, matplotlib.rc_context(STYLE):
        for name in drawn:
            drawings[name][1](stats).savefig(partial / f"{name}.png")
    for name in drawings.keys() - drawn:
        (folder / f"{name}.png").unlink(missing_ok=True)
    return [folder / f"{name}.png" for name in drawn]


def _types(stats: Stats) -> Figure:
    """Draw stacked bars: records of each problem type, by modality."""
    figure, (axis,) = _figure(5.6, 3.0)
    below = [0] * len(problem_types())
    for modality in ("image", "video"):
        counts = [stats.types[modality, kind] for kind in problem_types()]
        axis.bar(problem_types(), counts, 0.62, below, color=COLOURS[modality], label=modality)
        below = [low + count for low, count in zip(below, counts, strict=True)]
    for place, total in enumerate(below):
        axis.text(place, total, f"{total:,}", ha="center", va="bottom", color=_SOFT, fontsize=8)
    _counted(axis.yaxis, "records", axis.set_ylabel)
    axis.grid(axis="x", visible=False)
    axis.legend()
    axis.set_title(f"{stats.records:,} records by problem type", loc="left")
    return figure


def _sources(stats: Stats) -> Figure:
    """Draw bars: records of the most frequent sources."""
    shown = top_sources(stats.sources)
    figure, (axis,) = _figure(6.4, 0.9 + 0.24 * len(shown))
    bars = axis.barh(range(len(shown)), [count for _, count in shown], 0.66, color=COLOURS["video"])
    total = stats.sources.total()
    axis.bar_label(bars, [f"{n:,}  {n / total:.1%}" for _, n in shown], padding=4, color=_SOFT, fontsize=8)
    _names(axis, [name for name, _ in shown])
    _counted(axis.xaxis, "records", axis.set_xlabel)
    axis.margins(x=0.24)
    axis.set_title("Sources", loc="left")
    return figure


def _lengths(stats: Stats) -> Figure:
    """Draw histograms of both segments' lengths, and shade the band that earns the length reward."""
    figure, axes = _figure(9.2, 3.1, columns=len(PROCESSES))
    for axis, name in zip(axes, PROCESSES, strict=True):
        counts = stats.lengths[name]
        band: LengthBand = getattr(P2RSettings(), name).length
        inside = sum(n for length, n in counts.items() if band.minimum <= length <= band.maximum)
        axis.axvspan(band.minimum, band.maximum, color=COLOURS[name], alpha=0.13, lw=0)
        edges, heights = histogram(counts, max(quantile(counts, 0.99), band.maximum + band.minimum // 2))
        axis.stairs(heights, edges, fill=True, color=COLOURS[name])
        _counted(axis.yaxis, "responses", axis.set_ylabel)
        axis.set_xlabel(f"tokens (the last bar: {edges[-2]:,} and more)")
        axis.set_xlim(0, edges[-1])
        share = inside / counts.total()
        axis.set_title(f"{name}: {share:.1%} within {band.minimum}-{band.maximum} tokens", loc="left")
    return figure


def histogram(counts: Mapping[int, int], longest: int) -> tuple[list[int], list[int]]:
    """Count lengths in bins of equal width; the last one also counts all longer ones.

    Args:
        counts: length in tokens → number of responses.
        longest: a length that the last bin must reach, in tokens.

    Returns:
        The edges of at most `BINS` bins, from 0, and the number of responses in each.

    >>> histogram({0: 1, 2: 5, 3: 2, 99: 1}, 3)
    ([0, 1, 2, 3, 4], [1, 0, 5, 3])
    """
    width = math.ceil((longest + 1) / BINS)
    number = math.ceil((longest + 1) / width)
    held: Counter[int] = Counter()
    for length, count in counts.items():
        held[min(length // width, number - 1)] += count
    return [i * width for i in range(number + 1)], [held[i] for i in range(number)]


def _keep_rate(stats: Stats) -> Figure:
    """Draw a funnel: what each step read and kept, and its most frequent reasons for leaving records out."""
    steps = stats.history
    figure, (axis,) = _figure(7.6, 0.9 + 1.05 * len(steps))
    read, kept = ([step[key] for step in steps] for key in ("read", "written"))
    axis.barh(range(len(steps)), read, 0.26, color=COLOURS["left out"], label="left out")
    axis.barh(range(len(steps)), kept, 0.26, color=COLOURS["video"], label="kept")
    for place, step in enumerate(steps):
        rate = f"{step['written'] / step['read']:.1%}" if step["read"] else "-"
        label = f"{step['written']:,} of {step['read']:,}: {rate}"
        axis.annotate(label, (step["read"], place), (5, 0), textcoords="offset points", va="center", fontsize=8)
        why = "\n".join(f"{_short(reason)}: {count:,}" for reason, count in _most(left_out(step)))
        axis.annotate(why, (0, place + 0.17), (3, 0), textcoords="offset points", va="top", color=_SOFT, fontsize=7.5)
    _names(axis, [step["step"] for step in steps])
    axis.set_ylim(len(steps) - 0.25, -0.35)
    _counted(axis.xaxis, "records", axis.set_xlabel)
    axis.margins(x=0.26)
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right", ncols=2)
    figure.suptitle("Kept by each step", x=0.01, ha="left", fontsize=10)
    return figure


def _most(reasons: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    rest = sum(count for _, count in reasons[REASONS:])
    return [*reasons[:REASONS], *([("other reasons", rest)] if rest else [])]


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels side by side, sizes in inches. Unlike pyplot, it needs no screen and keeps nothing."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _names(axis: Axes, names: Iterable[str]) -> None:
    """Write names next to bars, the first one on top."""
    labels = [_short(name) or "(none)" for name in names]
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def _counted(axis: Any, what: str, set_label: Callable[[str], Any]) -> None:
    axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    set_label(what)


def _short(name: str) -> str:
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= NAME else name[: NAME - 1] + "…"
