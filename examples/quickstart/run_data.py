# SPDX-License-Identifier: Apache-2.0
"""Read what a run leaves behind: metrics, held-out rows and rollouts; errors name the file and the stage."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeGuard

Metrics = dict[int, dict[str, float]]  # step -> metric -> value
PROCESSES = ("perception", "reasoning")
EPSILON = 1e-6  # verl's, in GRPO's denominator
_VALIDATION = re.compile(r"val-(?:core|aux)/(?P<source>.+)/(?P<key>[^/]+)/mean@\d+")


class RunError(Exception):
    """An input that is missing or unreadable; the message says which and what to do."""


def read_rows(path: Path, stage: str, fields: Sequence[str] = ()) -> list[dict]:
    """Read a JSON-lines file of objects that all have `fields`.

    Raises:
        RunError: the file is missing, empty, or has a line that is not such an object; names file, line and field.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing: run the {stage} stage (`make quickstart` runs what does not stand yet).")
    rows = []
    # Not splitlines(): model output may hold U+2028 and its like, which JSON does not escape.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RunError(f"{path}, line {number}: not JSON ({error.msg}). Run the {stage} stage again.") from error
        if not isinstance(row, dict) or (absent := [field for field in fields if field not in row]):
            what = f"field {absent[0]!r} is missing" if isinstance(row, dict) else "not a JSON object"
            raise RunError(f"{path}, line {number}: {what}. Run the {stage} stage again.")
        rows.append(row)
    if not rows:
        raise RunError(f"{path} is empty: the {stage} stage wrote nothing. Run it again.")
    return rows


def read_metrics(path: Path, stage: str) -> Metrics:
    """Read what verl's file logger wrote.

    A resumed run logs its steps again: of two values for one step and metric the later one counts. The logger truncates
    its file when a run resumes, so earlier parts may be in the same folder as `metrics.<k>.jsonl`; they are read first.
    """
    if not path.is_file():
        read_rows(path, stage)  # raises
    steps: Metrics = {}
    for part in [*sorted(path.parent.glob(f"{path.stem}.*{path.suffix}")), path]:
        for row in read_rows(part, stage, ("step", "data")):
            steps.setdefault(int(row["step"]), {}).update({k: v for k, v in row["data"].items() if is_number(v)})
    return dict(sorted(steps.items()))


def answer_for(process: str) -> str:
    """The reader's word for what a process gets right."""
    return "answer" if process == "reasoning" else process


def is_number(value: object) -> TypeGuard[float]:
    """Whether a logged value can be drawn; verl's file logger writes NaN as null."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def series(metrics: Metrics, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one training metric, at the steps that logged it."""
    points = [(step, values[key]) for step, values in metrics.items() if key in values]
    return [step for step, _ in points], [value for _, value in points]


def validation(metrics: Metrics, key: str) -> dict[int, dict[str, float]]:
    """Values of one validation metric: step -> data source -> mean. A data source's name may hold slashes.

    >>> validation({0: {"val-aux/toy/colour/reasoning_accuracy/mean@1": 0.5}}, "reasoning_accuracy")
    {0: {'toy/colour': 0.5}}
    """
    steps: dict[int, dict[str, float]] = {}
    for step, values in metrics.items():
        for name, value in values.items():
            if (match := _VALIDATION.fullmatch(name)) and match["key"] == key:
                steps.setdefault(step, {})[match["source"]] = value
    return steps


def validation_mean(metrics: Metrics, key: str) -> dict[int, float]:
    """One validation metric over steps, every data source weighing the same."""
    return {step: fmean(sources.values()) for step, sources in validation(metrics, key).items()}


@dataclass(frozen=True)
class Share:
    """A mean of `n` values in [0, 1] with its 95 % Wilson score interval."""

    mean: float
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Share":
        """The share of a sample.

        Wilson (1927): (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), z = 1.96.

        >>> share = Share.of([1.0] * 8 + [0.0] * 2)
        >>> share.mean, share.n, round(share.low, 3), round(share.high, 3)
        (0.8, 10, 0.49, 0.943)
        """
        values = list(values)
        n, mean, z = len(values), fmean(values), 1.959964
        centre = mean + z * z / (2 * n)
        half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
        return cls(mean, n, max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n)))


@dataclass(frozen=True)
class Comparison:
    """One accuracy before and after RL, on the same held-out items."""

    mode: str  # sampled | greedy
    process: str
    before: Share
    after: Share

    @property
    def gain(self) -> float:
        """Difference in percentage points."""
        return 100 * (self.after.mean - self.before.mean)


def comparisons(run_dir: Path, notes: list[str]) -> list[Comparison]:
    """Before/after accuracies from `eval/`, else (sampled only) from the trainer's `rl/val/`; gaps go to `notes`."""
    result = []
    for mode in ("sampled", "greedy"):
        before, after = (run_dir / "eval" / f"{stage}_{mode}.jsonl" for stage in ("sft", "rl"))
        if not (before.is_file() and after.is_file()):
            missing = next(path for path in (before, after) if not path.is_file())
            dumps = step_files(run_dir / "rl" / "val")
            if mode == "greedy" or 0 not in dumps or len(dumps) < 2:
                notes.append(f"No {mode} before/after accuracy: {missing} is missing; run the evaluation stage.")
                continue
            notes.append(f"{missing} is missing: {mode} accuracy comes from the trainer's own validation.")
            before, after = dumps[0], dumps[max(dumps)]
        result += _compare(mode, before, after, notes)
    return result


def _compare(mode: str, before: Path, after: Path, notes: list[str]) -> list[Comparison]:
    keys = [f"{process}_accuracy" for process in PROCESSES]
    old, new = (read_rows(path, "evaluation", ("input", "gts", *keys)) for path in (before, after))
    if sorted(str((row["input"], row["gts"])) for row in old) != sorted(str((row["input"], row["gts"])) for row in new):
        notes.append(f"{before} and {after} do not hold the same items: their {mode} accuracies are not comparable.")
    pairs = []
    for process, key in zip(PROCESSES, keys, strict=True):
        # A row without a verdict has no perception accuracy; n then shows that it was left out.
        old_values, new_values = ([row[key] for row in rows if is_number(row[key])] for rows in (old, new))
        if not old_values or not new_values:
            raise RunError(f"{before if not old_values else after}: field {key!r} is a number in no row.")
        pairs.append(Comparison(mode, process, Share.of(old_values), Share.of(new_values)))
    return pairs


def step_files(folder: Path) -> dict[int, Path]:
    """The `<step>.jsonl` files of a folder by step; empty without the folder."""
    return {int(path.stem): path for path in sorted(folder.glob("*.jsonl")) if path.stem.isdigit()}


@dataclass(frozen=True)
class Rollout:
    """One training rollout with its group."""

    step: int
    row: dict
    group: list[dict]

    def advantage(self, process: str, row: dict | None = None) -> float | None:
        """Mean advantage over the tokens of one segment; None for an empty segment."""
        row = self.row if row is None else row
        cut = row["perception_tokens"]
        values = row["advantages"][:cut] if process == "perception" else row["advantages"][cut:]
        return fmean(values) if values else None

    @property
    def summed_advantage(self) -> float:
        """What GRPO on the summed reward would give every token: (s − mean) / (std + ε), std unbiased."""
        sums = [sum(row[f"{process}_reward"] for process in PROCESSES) for row in self.group]
        spread = stdev(sums) if len(sums) > 1 else 0.0
        return (sum(self.row[f"{process}_reward"] for process in PROCESSES) - fmean(sums)) / (spread + EPSILON)


def instructive_rollout(folder: Path) -> Rollout | None:
    """The rollout that shows best why two rewards: well-formed, with large advantages of opposite sign.

    Returns:
        The first of the best, in the order of steps and rows; None when there are no rollout files.
    """
    best, best_rank = None, None
    for step, path in sorted(step_files(folder).items()):
        rows = read_rollouts(path)
        groups: dict[str, list[dict]] = {}
        for row in rows:
            groups.setdefault(group_of(row), []).append(row)
        for row in rows:
            rollout = Rollout(step, row, groups[group_of(row)])
            perception, reasoning = (rollout.advantage(process) or 0.0 for process in PROCESSES)
            well_formed = all(row[f"{process}_format"] for process in PROCESSES)
            smaller = min(abs(perception), abs(reasoning))
            rank = (perception * reasoning < 0, well_formed, smaller, max(abs(perception), abs(reasoning)))
            if best_rank is None or rank > best_rank:
                best, best_rank = rollout, rank
    return best


def group_of(row: dict) -> str:
    """The prompt's id: verl dumps a rollout's own key, `<prompt>_<session>_<output>`, as its uid."""
    return row["uid"].rsplit("_", 2)[0]


def read_rollouts(path: Path) -> list[dict]:
    """Rollouts of one step, checked: one advantage per token, and a boundary inside the response."""
    fields = [f"{process}_{key}" for process in PROCESSES for key in ("reward", "format", "accuracy")]
    needed = ("input", "output", "gts", "uid", "tokens", "advantages", "perception_tokens", *fields)
    rows = read_rows(path, "RL", needed)
    for number, row in enumerate(rows, start=1):
        if len(row["tokens"]) != len(row["advantages"]):
            raise RunError(
                f"{path}, row {number}: {len(row['tokens'])} 'tokens' but {len(row['advantages'])} 'advantages'."
            )
        row["perception_tokens"] = int(row["perception_tokens"])
        if not 0 <= row["perception_tokens"] <= len(row["tokens"]):
            raise RunError(f"{path}, row {number}: 'perception_tokens' is outside the response.")
    return rows
