# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page: scores and published ones, curves, and a sample of replies with their frames.

The page loads nothing from a network, and its security policy allows only its own script.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data_tools.evaluate.cards import OUTCOMES, Card, pictures_of_card
from data_tools.evaluate.rollouts import CURVES, PROCESSES, Rollouts
from data_tools.evaluate.tables import Scored, details, heads, percent, shown_benchmarks, table, title_of
from data_tools.evaluate.tables import categories as category_table
from data_tools.look.page import page_template
from data_tools.records.folders import whole_files
from data_tools.records.outputs import check_file
from verl_p2r.cpus import available_cpus
from verl_p2r.evaluation.protocol import canonical

PICTURES = 16 << 20  # the most bytes of all pictures on the page
_STEP = re.compile(r"(\d+)$")
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Plot:
    """A small line plot.

    Args:
        title: title of the plot.
        lines: name → points, x and y.
        percent: whether y is a share, to be shown in percent.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    percent: bool = False


@dataclass(frozen=True)
class Report:
    """The content of a page.

    Args:
        title: title of the page.
        scored: runs from `scoring.score_run`; none for the page of a training.
        plots: the curves.
        cards: the sample of replies.
        media_root: folder of the cards' videos; None to show none.
        frames: the most pictures of a video.
    """

    title: str
    scored: Sequence[Scored] = ()
    plots: Sequence[Plot] = ()
    cards: Sequence[Card] = ()
    media_root: Path | None = None
    frames: int = 8


def score_plots(scored: Sequence[Scored]) -> list[Plot]:
    """Plot scores over steps, if the names of two runs or more end in different numbers."""
    steps = [(int(match[1]), run) for run in scored if (match := _STEP.search(run["name"]))]
    if len({step for step, _ in steps}) < 2:
        return []
    lines: dict[str, list[tuple[float, float]]] = {}
    for step, run in sorted(steps, key=lambda one: one[0]):
        for name, row in run["benchmarks"].items():
            lines.setdefault(title_of(name), []).append((step, row["score"]))
    return [Plot(f"Score over steps, protocol {scored[0]['protocol']}", lines, percent=True)]


def training_plots(rollouts: Rollouts) -> list[Plot]:
    """Plot the paper's curves from the rollout or validation files of a training, and the accuracy by data source."""
    by_source = {title_of(source): points for source, points in sorted(rollouts.scores().items())}
    plots = [Plot("Accuracy of the answers by data source", by_source, percent=True)] if by_source else []
    for name, title in CURVES.items():
        lines = {process: points for process in PROCESSES if (points := rollouts.curve(name, process))}
        if lines:
            plots.append(Plot(title, lines, percent=name not in ("reward", "tokens")))
    return plots


def write_report(report: Report, out: Path) -> int:
    """Write the page, whole or not at all, and return its size in bytes.

    Raises:
        ValueError: the file is not a regular file, or another process is writing it.
        OSError: the page cannot be written; an earlier one stays.
    """
    check_file(out)
    content = render(report).encode("utf-8", "replace")
    with whole_files(out.parent, out.name) as partial:
        (partial / out.name).write_bytes(content)
    return len(content)


def render(report: Report) -> str:
    """Return the page as text."""
    filters: dict[str, Callable[..., Any]] = {"table": _html_table, "percent": percent, "title_of": title_of}
    template = page_template("data_tools.evaluate", "report.html.j2", filters)
    room = PICTURES // max(len(report.cards), 1)
    with ThreadPoolExecutor(min(4, available_cpus())) as pool:
        pictures = list(
            pool.map(lambda card: pictures_of_card(card, report.media_root, report.frames, room), report.cards)
        )
    scored = report.scored
    return template.render(
        report=report,
        heads=[re.sub(r"\*\*|^ *- ", "", line) for text in heads(scored) for line in text.splitlines()]
        if scored
        else [],
        tables={"Scores": table(scored), "What qualifies them": details(scored)} if scored else {},
        categories=category_table(scored) if scored else "",
        bars=_bars(scored),
        plots=[(plot, _svg(plot)) for plot in report.plots],
        cards=list(zip(report.cards, pictures, strict=True)),
        choices={
            "run": list(dict.fromkeys(card.run for card in report.cards)),
            "group": sorted({card.group for card in report.cards}),
            "kind": sorted({card.kind for card in report.cards} - {""}),
            "outcome": [outcome for outcome in OUTCOMES if any(card.outcome == outcome for card in report.cards)],
            "verdict": sorted({card.verdict for card in report.cards} - {""}),
        },
    )


def _bars(scored: Sequence[Scored]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return for each benchmark the score and interval of every run, as shares of the width of a bar."""
    found = []
    for name in shown_benchmarks(scored):
        rows = [
            {"run": run["name"], **row}
            for run in scored
            for key, row in run["benchmarks"].items()
            if canonical(key) == name
        ]
        found.append((title_of(name), rows))
    return found


def _html_table(markdown: str) -> Markup:
    """Turn one of our Markdown tables into HTML; every cell is escaped."""
    head, _, *body = [
        [cell.replace("\\|", "|").replace("**", "").strip() for cell in _CELL.split(line)[1:-1]]
        for line in markdown.splitlines()
    ]
    rows = [Markup("<tr>{}</tr>").format(_cells("th", head))]
    rows += [Markup("<tr>{}</tr>").format(_cells("td", row)) for row in body]
    return Markup("<table>{}</table>").format(Markup("\n").join(rows))


def _cells(tag: str, texts: Sequence[str]) -> Markup:
    return Markup("").join(Markup("<{0}>{1}</{0}>").format(Markup(tag), text) for text in texts)


def _svg(plot: Plot) -> Markup:
    """Draw a plot as inline SVG; colours come from classes, because the policy forbids styles of single elements."""
    points = [point for line in plot.lines.values() for point in line]
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    low = min(low, 0.0)
    high = 1.0 if plot.percent or high <= low else high

    def place(x: float, y: float) -> str:
        across = 44 + 380 * ((x - left) / (right - left) if right > left else 0.5)
        return f"{across:.1f},{150 - 130 * (y - low) / (high - low):.1f}"

    def said(value: float) -> str:
        return f"{100 * value:.0f} %" if plot.percent else f"{value:.3g}"

    parts = [Markup('<svg viewBox="0 0 440 176" role="img" aria-label="{}">').format(plot.title)]
    for value in (low, (low + high) / 2, high):
        height = place(left, value).split(",")[1]
        parts.append(Markup('<line class="grid" x1="44" x2="424" y1="{0}" y2="{0}"/>').format(height))
        label = Markup('<text x="38" y="{}" text-anchor="end">{}</text>')
        parts.append(label.format(float(height) + 4, said(value)))
    for number, (name, line) in enumerate(plot.lines.items()):
        track = " ".join(place(x, y) for x, y in line)
        parts.append(Markup('<polyline class="line{}" points="{}"/>').format(number % 8, track))
        for x, y in line:
            cx, cy = place(x, y).split(",")
            dot = Markup('<circle class="line{}" cx="{}" cy="{}" r="2.5"><title>{}, {:g}: {}</title></circle>')
            parts.append(dot.format(number % 8, cx, cy, name, x, said(y)))
    ends = [(left, "start", 44), (right, "end", 424)] if right > left else [(left, "middle", 234)]
    for x, anchor, across in ends:
        parts.append(Markup('<text x="{}" y="170" text-anchor="{}">{:g}</text>').format(across, anchor, x))
    return Markup("").join([*parts, Markup("</svg>")])
