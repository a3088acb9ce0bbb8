# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' history, `benchmarks/history.jsonl`, as a table and a picture."""

import base64
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "history.jsonl"


def runs() -> list[dict[str, Any]]:
    """The recorded runs, oldest first."""
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines() if line.strip()]


def table() -> str:
    """All runs, newest first, one row each."""
    rows = ["| date | commit | benchmark | machine | load | figures |", "|---|---|---|---|---|---|"]
    for run in reversed(runs()):
        name = run["benchmark"] + (" --quick" if run["quick"] else "")
        figures = ", ".join(f"{key} {value:g}" for key, value in run["figures"].items() if value is not None)
        load = "" if run["load"] is None else run["load"]
        rows.append(f"| {run['date']} | `{run['commit']}` | {name} | {run['machine']} | {load} | {figures} |")
    return "\n".join(rows)


def plot() -> str:
    """Every figure over the runs of its benchmark, one small panel each, as an inline SVG picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    series: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in runs():
        for figure, value in run["figures"].items():
            if value is not None:
                series[run["benchmark"] + (" --quick" if run["quick"] else ""), figure].append(value)
    columns = 3
    height = -(-len(series) // columns)
    grey = "#808080"  # legible on light and dark pages
    style = {"text.color": grey, "axes.edgecolor": grey, "xtick.color": grey, "ytick.color": grey, "font.size": 8}
    with plt.rc_context(style):
        figure, axes = plt.subplots(height, columns, figsize=(8, 1.5 * height), squeeze=False, layout="constrained")
        for axis in axes.flat[len(series) :]:
            axis.set_visible(False)
        for axis, ((benchmark, name), values) in zip(axes.flat, series.items(), strict=False):
            axis.plot(range(1, len(values) + 1), values, marker="o", markersize=3, linewidth=1, color="#0f9d8f")
            axis.set_title(f"{benchmark}\n{name}", fontsize=8)
            axis.set_ylim(0, 1.15 * max(values) or 1)
            axis.set_xticks(range(1, len(values) + 1))
            axis.patch.set_alpha(0)
        figure.patch.set_alpha(0)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True)
        plt.close(figure)
    return f"![Figures over recorded runs](data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()})"
