# SPDX-License-Identifier: Apache-2.0
"""The comparison's runs: read from their folders or from JSON lines, summarised, and compared seed by seed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from run_data import PROCESSES, Metrics, RunError, read_metrics, read_rows, series, validation_mean

COLLAPSE = (*PROCESSES, "combined")
REFERENCE = "pa_grpo"
Runs = dict[str, dict[str, Metrics]]  # algorithm -> seed -> metrics

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Algorithm:
    """How an algorithm is called and drawn, and the rewards it learns from."""

    label: str
    colour: str
    learns_from: tuple[str, ...]


ALGORITHMS = {
    REFERENCE: Algorithm("PA-GRPO", "#0f766e", PROCESSES),
    "grpo_reasoning": Algorithm("GRPO reasoning", "#c9741a", ("reasoning",)),
    "grpo_sum": Algorithm("GRPO sum", "#6b7280", ("combined",)),
    "no_separation": Algorithm("no separation", "#8a4fa3", ("combined",)),
}
_BLUES = ("#93c5fd", "#3b82f6", "#1e3a8a", "#0ea5e9")


def algorithms_of(names: Sequence[str]) -> dict[str, Algorithm]:
    """Look up algorithms by their folder's name, in the order in which they are shown.

    Args:
        names: names of `ALGORITHMS`, or `cross_<λ>` for PA-GRPO with cross credit.

    Raises:
        RunError: a name is unknown.

    >>> [algorithm.label for algorithm in algorithms_of(["cross_0.5", "pa_grpo"]).values()]
    ['PA-GRPO', 'λ = 0.5']
    """
    crossed = {}
    for name in names:
        if name not in ALGORITHMS:
            try:
                crossed[name] = float(name.removeprefix("cross_"))
            except ValueError:
                known = ", ".join(ALGORITHMS)
                raise RunError(f"{name}: unknown algorithm; known are {known} and cross_<λ>.") from None
    found = {name: algorithm for name, algorithm in ALGORITHMS.items() if name in names}
    for number, name in enumerate(sorted(crossed, key=lambda name: crossed[name])):
        found[name] = Algorithm(f"λ = {crossed[name]:g}", _BLUES[number % len(_BLUES)], PROCESSES)
    return found


def read_runs(folder: Path) -> tuple[Runs, list[str]]:
    """Read `<algorithm>/seed<k>/metrics.jsonl`; a run that is missing, just begun or stopped is left out and named.

    Returns:
        The complete runs of each algorithm that has a folder, and one line per run left out.

    Raises:
        RunError: no run at all, an unknown algorithm, or an unreadable file.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist: run examples/quickstart/compare.sh first.")
    files = [path for path in sorted(folder.glob("*/seed*/metrics.jsonl")) if path.stat().st_size]  # else: just begun
    found = {path.parent.relative_to(folder): path for path in files}
    if not found:
        raise RunError(
            f"{folder} has no run (<algorithm>/seed<k>) with metrics: run examples/quickstart/compare.sh first."
        )
    metrics = {run: read_metrics(path, "comparison") for run, path in found.items()}
    last = {run: max(validation_mean(values, "reasoning_accuracy"), default=None) for run, values in metrics.items()}
    end = max((step for step in last.values() if step is not None), default=None)
    if end is None:
        raise RunError(f"{folder}: no run has logged a validation accuracy yet.")
    folders = {path.relative_to(folder) for path in folder.glob("*/seed*") if path.is_dir()}
    seeds = sorted({run.parts[1] for run in folders}, key=lambda seed: (len(seed), seed))
    runs: Runs = {name: {} for name in algorithms_of([run.parts[0] for run in folders])}
    left_out = []
    for name in runs:
        for seed in seeds:
            run = Path(name, seed)
            if run not in found:
                left_out.append(f"{run.as_posix()}: no metrics")
            elif last[run] != end:
                left_out.append(f"{run.as_posix()}: last validation at step {last[run]}, not {end}")
            else:
                runs[name][seed] = metrics[run]
    return runs, left_out


def records_of(runs: Runs) -> list[dict]:
    """One small record a run: held-out accuracies before and after, and mean collapse over the steps."""
    records = []
    for name, seeds in runs.items():
        for seed, metrics in seeds.items():
            validated = {process: validation_mean(metrics, f"{process}_accuracy") for process in PROCESSES}
            collapse = {kind: series(metrics, f"p2r/collapse/{kind}")[1] for kind in COLLAPSE}
            records.append(
                {
                    "algorithm": name,
                    "seed": seed,
                    "before": {process: by_step.get(0) for process, by_step in validated.items()},
                    "after": {process: by_step[max(by_step)] for process, by_step in validated.items() if by_step},
                    "collapse": {kind: fmean(values) if values else None for kind, values in collapse.items()},
                }
            )
    return records


def write_records(records: list[dict], path: Path) -> None:
    """Write records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def read_records(path: Path) -> list[dict]:
    """Read what `write_records` wrote.

    Raises:
        RunError: the file is missing or unreadable.
    """
    return read_rows(path, "comparison", ("algorithm", "seed", "before", "after", "collapse"))


def summarise(records: list[dict], left_out: list[str]) -> dict:
    """Accuracies and collapse of each algorithm over its seeds, and its differences to PA-GRPO with equal seeds."""
    algorithms = {}
    for name, algorithm in algorithms_of([record["algorithm"] for record in records]).items():
        own = [record for record in records if record["algorithm"] == name]
        entry = {"label": algorithm.label, "seeds": len(own)}
        for part, kinds in (("before", PROCESSES), ("after", PROCESSES), ("collapse", COLLAPSE)):
            entry[part] = {kind: _over_seeds(_by_seed(own, part, kind)) for kind in kinds}
        algorithms[name] = entry
    if REFERENCE in algorithms:
        reference = algorithms[REFERENCE]["after"]
        for name in algorithms.keys() - {REFERENCE}:
            algorithms[name]["difference"] = {
                process: paired_difference(algorithms[name]["after"][process]["by_seed"], reference[process]["by_seed"])
                for process in PROCESSES
            }
    return {"algorithms": algorithms, "left_out": left_out}


def paired_difference(one: dict[str, float], other: dict[str, float]) -> dict:
    """Mean of one − other over the seeds that both have, with its 95 % interval: ± t_{0.975, n−1} · sd / √n.

    Returns:
        `n`, `mean`, `low` and `high`; None where they do not exist. Beyond 31 seeds t is that of 31, slightly too wide.

    >>> found = paired_difference({"1": 3.0, "2": 5.0, "3": 4.0}, {"1": 1.0, "2": 1.0, "3": 1.0, "4": 9.0})
    >>> found["n"], found["mean"], round(found["high"] - found["mean"], 3)  # sd 1: 4.303 / √3
    (3, 3.0, 2.484)
    """
    differences = [one[seed] - other[seed] for seed in one if seed in other]
    n = len(differences)
    mean = fmean(differences) if n else None
    if n < 2:
        return {"n": n, "mean": mean, "low": None, "high": None}
    half = _STUDENT[min(n - 1, len(_STUDENT)) - 1] * stdev(differences) / n**0.5
    return {"n": n, "mean": mean, "low": mean - half, "high": mean + half}


def _by_seed(records: list[dict], part: str, kind: str) -> dict[str, float]:
    return {record["seed"]: value for record in records if (value := record[part].get(kind)) is not None}


def _over_seeds(by_seed: dict[str, float]) -> dict:
    """Mean and unbiased sd, None where they do not exist."""
    values = list(by_seed.values())
    sd = stdev(values) if len(values) > 1 else None
    return {"mean": fmean(values) if values else None, "sd": sd, "by_seed": by_seed}
