# SPDX-License-Identifier: Apache-2.0
"""Scores as Markdown: a table with the published rows, and what qualifies each score."""

from collections.abc import Mapping, Sequence
from typing import Any

from data_tools.evaluate.adapters import ADAPTERS
from verl_p2r.evaluation import BENCHMARKS
from verl_p2r.evaluation.protocol import canonical
from verl_p2r.evaluation.references import TOLERANCE, Reference, references

Scored = Mapping[str, Any]
"""What `scoring.score_run` returns."""


def title_of(benchmark: str) -> str:
    """Return the usual spelling of a benchmark's name."""
    adapter = ADAPTERS.get(canonical(benchmark))
    return adapter.title if adapter else benchmark


def percent(value: float) -> str:
    """Return a share in percent, with one decimal."""
    return f"{100 * value:.1f}"


def markdown(runs: Sequence[Scored]) -> str:
    """Return all tables of runs that were scored by one protocol."""
    parts = ["# Evaluation", *heads(runs), "## Scores", table(runs), "## What qualifies them", details(runs)]
    parts += ["## By category", categories(runs)]
    return "\n\n".join(parts) + "\n"


def heads(runs: Sequence[Scored]) -> list[str]:
    """Return what must accompany every score: the protocol, its notes, and the setting and items of each run."""
    lines = [f"Protocol **{runs[0]['protocol']}**: {runs[0]['protocol_description']}."]
    for run in runs:
        items = sum(row["n"] for row in run["benchmarks"].values())
        lines.append(f"- **{run['name']}**: {run['setting']}; {items:,} items")
        if run["prepared_for"] != [run["protocol"]]:
            lines.append(
                f"  - Its items were prepared for {', '.join(run['prepared_for'])}, so what is asked differs from the "
                "protocol's own"
            )
    noted = {title_of(name): row["note"] for run in runs for name, row in run["benchmarks"].items()}
    lines += [f"- {title}: {note}" for title, note in noted.items() if note]
    return [lines[0], "\n".join(lines[1:])]


def table(runs: Sequence[Scored]) -> str:
    """Return scores in percent with Wilson's 95 % interval and n, above the published rows of the same protocol."""
    names = shown_benchmarks(runs)
    rows = [["", *map(title_of, names), "average"]]
    for run in runs:
        own = {canonical(name): row for name, row in run["benchmarks"].items()}
        cells = [_cell(own[name]) if name in own else "" for name in names]
        rows.append([f"**{run['name']}**", *cells, _average({name: 100 * row["score"] for name, row in own.items()})])
    for reference in references().values():
        if reference.protocol == runs[0]["protocol"] and set(reference.scores) & set(names):
            cells = [f"{reference.scores[name]:.1f}" if name in reference.scores else "" for name in names]
            rows.append(
                [
                    f"{reference.name}; {reference.setting}",
                    *cells,
                    "" if reference.average is None else f"{reference.average:.1f}",
                ]
            )
    return _markdown(rows)


def shown_benchmarks(runs: Sequence[Scored]) -> list[str]:
    """Return the benchmarks that any run has: first the paper's in its order, then the others."""
    own = list(dict.fromkeys(canonical(name) for run in runs for name in run["benchmarks"]))
    return [*(name for name in BENCHMARKS if name in own), *(name for name in own if name not in BENCHMARKS)]


def details(runs: Sequence[Scored]) -> str:
    """Return what qualifies each score: one row for each run and benchmark."""
    head = ["run", "benchmark", "n", "score", "95 %", "95 % by video", "lenient", "lost", "cut off", "in the template"]
    rows = [[*head, "reply length, median", "notes"]]
    for run in runs:
        for name, row in run["benchmarks"].items():
            clustered = row["clustered"]
            rows.append(
                [
                    run["name"],
                    title_of(name),
                    f"{row['n']:,}",
                    percent(row["score"]),
                    f"{percent(row['low'])}–{percent(row['high'])}",
                    f"{percent(clustered['low'])}–{percent(clustered['high'])} ({clustered['videos']:,} videos)",
                    percent(row["lenient"]["score"]),
                    ", ".join(f"{reason}: {count:,}" for reason, count in row["lost"].items()) or "none",
                    percent(row["truncated"]),
                    percent(row["format_rate"]),
                    f"{row['length']['median']:,.0f}",
                    "; ".join(notes(row)),
                ]
            )
    return _markdown(rows)


def notes(row: Mapping[str, Any]) -> list[str]:
    """Return what else a reader must know about the score of a benchmark."""
    found = []
    if row.get("expected") and row["n"] != row["expected"]:
        found.append(f"{row['n']:,} of the {row['expected']:,} published items")
    if row.get("missing_media"):
        found.append(f"{row['missing_media']:,} media were missing")
    if "overall" in row:
        averages = ", ".join(f"{name} {percent(value)}" for name, value in row["overall"].items())
        found.append(f"averages: {averages}")
    if "knowledge_gain" in row:
        gain = row["knowledge_gain"]
        found.append(
            f"Δknowledge {100 * gain['score']:+.1f} (Adaptation {percent(gain['before'])} without the lectures, "
            f"{percent(gain['after'])} with them)"
        )
    if "overlap" in row:
        found.append(
            f"in the training data: {percent(row['overlap']['media'])} % of items by their medium, "
            f"{percent(row['overlap']['questions'])} % by their question"
        )
    if row.get("revision"):
        found.append(f"revision {row['revision'][:12]}")
    return found


def categories(runs: Sequence[Scored]) -> str:
    """Return scores by question type, task or track, and by other categories."""
    rows = [["benchmark", "category", *(f"{run['name']}" for run in runs)]]
    for name in shown_benchmarks(runs):
        own: list[Mapping[str, Any]] = [
            next(
                (row for key, row in run["benchmarks"].items() if canonical(key) == name), {"categories": {}, "by": {}}
            )
            for run in runs
        ]
        groups = {"": [row["categories"] for row in own]}
        for kind in dict.fromkeys(kind for row in own for kind in row["by"]):
            groups[f"{kind}: "] = [row["by"].get(kind, {}) for row in own]
        for prefix, found in groups.items():
            for category in dict.fromkeys(category for one in found for category in one):
                cells = [_cell(one[category]) if category in one else "" for one in found]
                rows.append([title_of(name), f"{prefix}{category}", *cells])
    return _markdown(rows)


def mismatch_markdown(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the think–answer mismatch by benchmark, see `evaluation.mismatch`."""
    head = ["", "items", "both read", "mismatch", "95 %", "thinking unread", "answer unread", "read by the judge"]
    rows = [[*head, "both right", "thinking right only", "answer right only", "both wrong"]]
    for name, row in tables.items():
        table = row["table"]
        shares = [percent(row[key]) for key in ("unread_thinking", "unread_answer", "by_judge")]
        corners = [table["right"]["right"], table["right"]["wrong"], table["wrong"]["right"], table["wrong"]["wrong"]]
        mismatch = (
            [percent(row["mismatch"]), f"{percent(row['low'])}–{percent(row['high'])}"] if row["read"] else ["–"] * 2
        )
        counts = [f"{row['n']:,}", f"{row['read']:,}"]
        rows.append([title_of(name), *counts, *mismatch, *shares, *(f"{count:,}" for count in corners)])
    return _markdown(rows)


def reading_markdown(readers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how well readers of thinking agree with labels, see `mismatch_quality.measure_readers`."""
    rows = [["", "cases", "right", "95 %", "wrong letter", "not read"]]
    for name, row in readers.items():
        shares = [percent(row["wrong"]), percent(row["missed"])]
        rows.append(
            [name, f"{row['n']:,}", percent(row["right"]), f"{percent(row['low'])}–{percent(row['high'])}", *shares]
        )
    return _markdown(rows)


def sufficiency_markdown(result: Mapping[str, Mapping[str, Any]]) -> str:
    """Return scores without a video by benchmark, see `evaluate.sufficiency`; `video` holds those of the run itself."""
    passes = [name for name in ("video", "observation", "question", "other") if name in result]
    titles = {
        "video": "with the video",
        "observation": "question and observation",
        "question": "question alone",
        "other": "another item's observation",
    }
    rows = [["", *(titles[name] for name in passes), "observations that state an answer"]]
    for benchmark in result[passes[0]]:
        naming = result["names_answer"].get(benchmark)
        cells = [_cell(result[name][benchmark]) for name in passes]
        rows.append([title_of(benchmark), *cells, "" if naming is None else percent(naming)])
    return _markdown(rows)


def check(run: Scored, reference: Reference) -> list[tuple[str, float, float, bool]]:
    """Compare a run with a published row.

    Returns:
        For each benchmark its name, our percent, the published percent, and whether they differ by at most `TOLERANCE`.
    """
    own = {canonical(name): 100 * row["score"] for name, row in run["benchmarks"].items()}
    return [
        (name, own[name], published, abs(own[name] - published) <= TOLERANCE)
        for name, published in reference.scores.items()
        if name in own
    ]


def _cell(row: Mapping[str, Any]) -> str:
    return f"{percent(row['score'])} [{percent(row['low'])}–{percent(row['high'])}] n={row['n']:,}"


def _average(scores: Mapping[str, float]) -> str:
    """Return the plain average if all seven benchmarks have a score, else an empty text."""
    return f"{sum(scores[name] for name in BENCHMARKS) / 7:.1f}" if set(BENCHMARKS) <= set(scores) else ""


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))
