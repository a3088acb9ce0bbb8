# SPDX-License-Identifier: Apache-2.0
"""One row of RL data as the method sees it, read from verl's parquet columns and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_p2r.accuracy import PROBLEM_TYPES
from verl_p2r.facts import Fact
from verl_p2r.judge import JudgeRequest


class RowError(ValueError):
    """A row that cannot be used.

    Args:
        field: the field at fault.
        reason: a short name, the same for all rows of one kind, for counting.
        problem: what is wrong, and what to do about it.
        name: how messages call the row; empty where the caller adds it.
        medium: the path of the media file at fault, if it is one.
    """

    def __init__(self, field: str, reason: str, problem: str, name: str = "", medium: str | None = None) -> None:
        super().__init__(field, reason, problem, name, medium)  # all arguments, so that it can be pickled
        self.field, self.reason, self.problem, self.name, self.medium = field, reason, problem, name, medium

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}" if self.name else self.problem


@dataclass(frozen=True)
class Row:
    """What rewarding a response needs to know of its prompt.

    Args:
        name: how messages call the row, for example `rl_train row 17`.
        problem_type: one of `accuracy.PROBLEM_TYPES`.
        solution: the ground truth, with or without its `<answer>` tags.
        question: the question as text, options included.
        options: the options of a multiple choice question, else empty.
        facts: what the observation must state, for the judge `facts`; None when the data lists none.
    """

    name: str
    problem_type: str
    solution: str
    question: str
    options: tuple[str, ...] = ()
    facts: tuple[Fact, ...] | None = None

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any], name: str | None = None) -> "Row":
        """Read a row from verl's columns `reward_model`, `extra_info`, `problem_type` and `prompt` or `raw_prompt`.

        Args:
            columns: the row.
            name: how messages call it; by default from `extra_info.split` or `data_source`, and `extra_info.index`.

        Raises:
            RowError: naming row and field, when the problem type or the ground truth is missing or unknown.

        >>> Row.from_columns({"problem_type": "numerical", "reward_model": {"ground_truth": "3"},
        ...                   "extra_info": {"index": 7, "split": "train", "question": "How many?"}}).name
        'train row 7'
        """
        extra = columns.get("extra_info") or {}
        name = name or f"{extra.get('split') or columns.get('data_source') or 'data'} row {extra.get('index', '?')}"
        problem_type = columns.get("problem_type") or extra.get("problem_type")
        if problem_type not in PROBLEM_TYPES:
            raise RowError(
                "problem_type",
                "unknown problem type",
                f"field problem_type is {problem_type!r}: give one of {', '.join(PROBLEM_TYPES)} in the column "
                "problem_type or in extra_info.problem_type",
                name,
            )
        solution = (columns.get("reward_model") or {}).get("ground_truth")
        if not isinstance(solution, str) or not solution.strip():
            raise RowError(
                "reward_model.ground_truth",
                "no ground truth",
                f"field reward_model.ground_truth is {solution!r}: give the correct answer as text, with or "
                "without its <answer> tags, or drop the row",
                name,
            )
        try:
            facts = Fact.parse_all(extra.get("facts"))
        except ValueError as error:
            raise RowError("extra_info.facts", "bad facts", f"field extra_info.facts: {error}", name) from error
        return cls(
            name=name,
            problem_type=problem_type,
            solution=solution,
            question=extra.get("question") or _text_of(columns.get("prompt"), columns.get("raw_prompt")),
            options=tuple(_listed(extra.get("options"))),
            facts=facts,
        )

    def judge_request(self, observation: str) -> JudgeRequest:
        """What the perception judge is asked about one observation of this row."""
        return JudgeRequest(
            question=self.question,
            solution=self.solution,
            observation=observation,
            problem_type=self.problem_type,
            facts=self.facts,
            row=self.name,
        )


def _listed(value: Any) -> Sequence[Any]:
    """A list from what parquet readers make of one: a list, a numpy array, or None."""
    return [] if value is None else list(value)


def _text_of(*conversations: Any) -> str:
    """The text of the last user turn of the first conversation that there is, media left out."""
    conversation: Sequence[Any] = next((c for c in conversations if c is not None and len(c)), [])
    users = [message for message in conversation if message.get("role") == "user"]
    if not users:
        return ""
    content = users[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if part.get("type") == "text")
