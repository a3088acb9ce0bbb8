# SPDX-License-Identifier: Apache-2.0
"""Reads the rollout files of a training (`trainer.rollout_data_dir`): curves over steps, and cards of single rollouts.

The curves are those of the paper: rewards, format rates and segment lengths of each process, and advantage collapse,
the share of groups whose rewards are all equal.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from data_tools.evaluate.cards import SHOWN, Card, Drawable, Token, outcome_of, tokens_of
from data_tools.evaluate.verdicts import NO_VERDICT
from verl_p2r.data.reading import read_values

PROCESSES = ("perception", "reasoning")
CURVES = {
    "reward": "Reward",
    "accuracy": "Accuracy (perception: the judge's Yes)",
    "format": "Share in the template",
    "tokens": "Segment length, tokens",
    "collapse": "Advantage collapse: share of groups with equal rewards",
}
_TONES = 4


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of a training.

    Args:
        folder: folder of the `<step>.jsonl` files.
        steps: step → rows as verl wrote them.
    """

    folder: Path
    steps: Mapping[int, Sequence[Mapping[str, Any]]]

    @classmethod
    def read(cls, folder: Path) -> "Rollouts":
        """Read a folder; files of `trainer.validation_data_dir` have the same form.

        Raises:
            ValueError: it holds no such file, or a row is not a rollout.
        """
        files = {int(file.stem): file for file in sorted(folder.glob("*.jsonl")) if file.stem.isdigit()}
        if not files:
            raise ValueError(f"{folder} holds no <step>.jsonl: name the trainer.rollout_data_dir of a run")
        return cls(folder, {step: list(_rows(file)) for step, file in sorted(files.items())})

    def curve(self, name: str, process: str) -> list[tuple[int, float]]:
        """Return one of `CURVES` for a process, as (step, value); steps without a value are left out."""
        of = _collapse if name == "collapse" else lambda rows, process: _mean(rows, f"{process}_{name}")
        points = [(step, of(rows, process)) for step, rows in self.steps.items()]
        return [(step, value) for step, value in points if value is not None]

    def scores(self) -> dict[str, list[tuple[int, float]]]:
        """Return the mean accuracy of the answers by data source, as (step, share)."""
        lines: dict[str, list[tuple[int, float]]] = {}
        for step, rows in self.steps.items():
            sources: dict[str, list[float]] = defaultdict(list)
            for row in rows:
                if row.get("data_source") and isinstance(row.get("acc"), int | float):
                    sources[str(row["data_source"])].append(row["acc"])
            for source, values in sources.items():
                lines.setdefault(source, []).append((step, fmean(values)))
        return lines

    def drawables(self) -> list[Drawable[Card]]:
        """Return every rollout as a card with its stratum (step and outcome), for `cards.draw`."""
        return [
            ((f"{step:08d}", card.outcome), card.title, card)
            for step, rows in self.steps.items()
            for number, row in enumerate(rows)
            for card in [_card(row, step, number)]
        ]


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    for raw in read_values(file):
        if not isinstance(raw.value, dict) or not isinstance(raw.value.get("output"), str):
            raise ValueError(f"{raw.file}:{raw.line}: not a rollout as verl writes it: name another folder")
        yield raw.value


def _mean(rows: Sequence[Mapping[str, Any]], field: str) -> float | None:
    values = [value for row in rows if isinstance(value := row.get(field), int | float)]
    return fmean(values) if values else None


def _collapse(rows: Sequence[Mapping[str, Any]], process: str) -> float | None:
    groups: dict[str, set[float]] = defaultdict(set)
    sizes: dict[str, int] = defaultdict(int)
    for row in rows:
        if "uid" in row and f"{process}_reward" in row:
            key = str(row["uid"]).rsplit("_", 2)[0]  # <prompt>_<session>_<output>
            groups[key].add(round(row[f"{process}_reward"], 6))
            sizes[key] += 1
    several = [key for key in groups if sizes[key] > 1]
    return sum(len(groups[key]) == 1 for key in several) / len(several) if several else None


def _verdict(accuracy: Any) -> str:
    """A verdict in words, from the perception accuracy, which lies between 0 and 1 for a soft reward."""
    if not isinstance(accuracy, int | float):
        return NO_VERDICT
    return f"{'Yes' if accuracy >= 0.5 else 'No'}" + (f" ({accuracy:.2f})" if 0 < accuracy < 1 else "")


def _card(row: Mapping[str, Any], step: int, number: int) -> Card:
    perception, reasoning = _tokens(row)
    facts = []
    for process in PROCESSES:
        if isinstance(reward := row.get(f"{process}_reward"), int | float):
            facts.append(f"R_{process[0].upper()} {reward:.2f}")
    accuracy = row.get("reasoning_accuracy", row.get("acc"))
    error = row.get("judge_error")
    return Card(
        title=f"step {step}, rollout {number + 1}",
        run=f"step {step}",
        group=str(row.get("data_source") or "training"),
        kind="",
        outcome=outcome_of(float(accuracy)) if isinstance(accuracy, int | float) else "lost",
        facts=facts,
        question=str(row.get("input") or "")[-SHOWN:],
        options=(),
        solution=str(row.get("gts") or ""),
        perception=perception,
        reasoning=reasoning,
        notes=[f"Judge: {error}"] if error else [],
        verdict=_verdict(row.get("perception_accuracy")),
    )


def _tokens(row: Mapping[str, Any]) -> tuple[list[Token], list[Token]]:
    """Return the tokens with their advantages if the file has them, else the words."""
    tokens, advantages = row.get("tokens"), row.get("advantages")
    if not tokens or not advantages or len(tokens) != len(advantages):
        return tokens_of(row["output"][:SHOWN])
    largest = max((abs(value) for value in advantages), default=0.0) or 1.0
    made = [
        Token(text, round(_TONES * value / largest), f"token {place}, advantage {value:+.3f}")
        for place, (text, value) in enumerate(zip(tokens, advantages, strict=True))
    ]
    cut = int(row.get("perception_tokens") or 0)
    return made[:cut], made[cut:]
