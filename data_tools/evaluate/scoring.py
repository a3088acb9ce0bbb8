# SPDX-License-Identifier: Apache-2.0
"""Step 3 of an evaluation: scores runs, each with its protocol, its setting and what qualifies the score."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.evaluate.results import Run
from data_tools.steps.decontaminate import Benchmark as Known
from data_tools.steps.decontaminate import medium_key, question_key
from verl_p2r.evaluation import Protocol, score

MAX_LOST = 0.01
"""The share of items without a reply above which a run is not scored unless the caller allows it."""


@dataclass(frozen=True)
class Overlap:
    """Training data to look for the items of an evaluation in.

    Args:
        media: keys of the media, see `decontaminate.medium_key`.
        questions: keys of the questions, see `decontaminate.question_key`.
    """

    media: Collection[str]
    questions: Collection[str]

    @classmethod
    def of(cls, files: Sequence[Path]) -> "Overlap":
        """Read training records: JSON, JSON lines or parquet."""
        known = Known(files)
        return cls(known.media.keys(), known.questions.keys())

    def of_records(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the shares of items whose medium, and whose question, occurs in the training data."""
        media = sum(medium_key(record["path"]) in self.media for record in records)
        questions = sum(question_key(record["problem"]) in self.questions for record in records)
        return {"media": media / len(records), "questions": questions / len(records)}


def score_run(run: Run, protocol: str, *, max_lost: float = MAX_LOST, overlap: Overlap | None = None) -> dict[str, Any]:
    """Score a run.

    Args:
        run: a run from `results.read_run`.
        protocol: name of a protocol, or path of a YAML file.
        max_lost: the largest share of a benchmark's items, in [0, 1], that may have no reply.
        overlap: training data to look for the items in.

    Returns:
        `name`, `setting`, `protocol`, `prepared_for`, and `benchmarks`: for each the figures of `evaluation.score`
        and `expected`, `complete`, `revision`, `missing_media` of its preparation, and `overlap` if it was given.

    Raises:
        ValueError: too many items of a benchmark have no reply.
    """
    figures = score(run.records, protocol)
    for name, row in figures.items():
        lost = sum(row["lost"].values())
        if lost > max_lost * row["n"]:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in row["lost"].items())
            raise ValueError(
                f"{run.folder}: {lost:,} of {row['n']:,} items of {name} have no reply ({reasons}): run again, which "
                f"asks only them, or score all the same with --max-lost {lost / row['n']:.2g}"
            )
        own = next((one for one in run.preparations if one.benchmark == name), None)
        if own is not None:
            row |= {key: own.settings.get(key) for key in ("expected", "complete", "revision")}
            row["missing_media"] = len(own.missing)
        if overlap is not None:
            row["overlap"] = overlap.of_records([one for one in run.records if one["benchmark"] == name])
    rules = Protocol.load(protocol)
    return {
        "name": run.name,
        "setting": run.setting,
        "protocol": rules.name,
        "protocol_description": rules.description,
        "prepared_for": run.prepared_for,
        "benchmarks": figures,
    }
