# SPDX-License-Identifier: Apache-2.0
"""What the reward needs to know of a row, read from verl's columns and checked."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from verl_p2r.accuracy import is_problem_type, problem_types
from verl_p2r.data.elements import kind_of, names_medium, read_made_element
from verl_p2r.data.errors import RowError
from verl_p2r.data.fields import options_of
from verl_p2r.data.values import is_unset, plain, read_text, shown
from verl_p2r.judge import JudgeRequest, SecondAnswer
from verl_p2r.judge.facts import Fact


@dataclass(frozen=True)
class Row:
    """What the reward of a response needs to know of its prompt.

    Args:
        name: name of the row in messages, for example `train row 17`.
        problem_type: one of `accuracy.problem_types()`.
        solution: the ground truth, with or without its `<answer>` tags.
        question: the question as text, including its options.
        options: options of a multiple choice question, otherwise empty.
        facts: what the observation must state, for the judge `facts`; None if the data lists none.
        media: canonical elements of the prompt's videos and images, for the judge `visual`.
    """

    name: str
    problem_type: str
    solution: str
    question: str
    options: tuple[str, ...] = ()
    facts: tuple[Fact, ...] | None = None
    media: tuple[dict[str, Any], ...] = ()

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any], name: str | None = None) -> "Row":
        """Read a row from verl's columns `reward_model`, `extra_info`, `problem_type` and `prompt` or `raw_prompt`.

        Args:
            columns: the row.
            name: name of the row in messages; by default made of `extra_info.split` or `data_source`, and
                `extra_info.index`.

        Raises:
            RowError: the problem type or the ground truth is missing or unknown; the message names row and field.

        >>> Row.from_columns({"problem_type": "numerical", "reward_model": {"ground_truth": "3"},
        ...                   "extra_info": {"index": 7, "split": "train", "question": "How many?"}}).name
        'train row 7'
        """
        extra = _mapping(columns, "extra_info")
        name = name or f"{extra.get('split') or columns.get('data_source') or 'data'} row {extra.get('index', '?')}"
        problem_type = plain(columns.get("problem_type") or extra.get("problem_type"))
        if not is_problem_type(problem_type):
            raise RowError(
                "problem_type",
                "unknown problem type",
                f"field problem_type is {shown(problem_type)}: give one of {', '.join(problem_types())} in the column "
                "problem_type or in extra_info.problem_type",
                name,
            )
        solution = _mapping(columns, "reward_model").get("ground_truth")
        if not isinstance(solution, str) or not solution.strip():
            raise RowError(
                "reward_model.ground_truth",
                "no ground truth",
                f"field reward_model.ground_truth is {shown(solution)}: give the correct answer as text, with or "
                "without its <answer> tags, or drop the row",
                name,
            )
        try:
            facts = Fact.parse_all(read_text(extra.get("facts")))
            options = options_of(extra.get("options"))
        except RowError as error:
            raise RowError("extra_info.options", error.reason, f"extra_info: {error.problem}", name) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise RowError("extra_info.facts", "bad facts", f"field extra_info.facts: {error}", name) from error
        question = extra.get("question")
        return cls(
            name=name,
            problem_type=problem_type,
            solution=solution,
            question=question if isinstance(question, str) and question else _text_of(columns),
            options=tuple(options),
            facts=facts,
            media=_media_of(columns),
        )

    def judge_request(self, observation: str, second_answer: SecondAnswer | None = None) -> JudgeRequest:
        """Make the request that asks the perception judge about one observation of this row.

        Args:
            observation: the text between the `<observation>` tags.
            second_answer: the policy's answer from it, for the judge `self`.
        """
        return JudgeRequest(
            question=self.question,
            solution=self.solution,
            observation=observation,
            problem_type=self.problem_type,
            facts=self.facts,
            row=self.name,
            second_answer=second_answer,
            media=self.media,
        )


def _mapping(columns: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """Return a column that holds a mapping; an empty mapping if it is not set."""
    value = columns.get(field)
    if not isinstance(value, Mapping):
        if not is_unset(value):
            raise RowError(field, "wrong columns", f"field {field} is {shown(value)}: give a mapping, or leave it out")
        return {}
    return value


def _media_of(columns: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the media in `raw_prompt`, where the dataset puts them; one that cannot be read is left out.

    The prompt has been decoded by now, so only a dataset that is not ours leaves any out. The judge `visual` then says
    that there is nothing to see.
    """
    conversation = read_text(columns.get("raw_prompt"))
    media = []
    for turn in conversation if isinstance(conversation, list | tuple) else ():
        content = plain(turn.get("content")) if isinstance(turn, Mapping) else None
        for part in content if isinstance(content, list | tuple) else ():
            kind = kind_of(part) if isinstance(part, Mapping) else None
            if kind is not None and names_medium(part, kind):
                with suppress(RowError):
                    media.append(read_made_element(part, kind, "raw_prompt"))
    return tuple(media)


def _text_of(columns: Mapping[str, Any]) -> str:
    """Return the text of the last user turn in `prompt` or `raw_prompt`, without media."""
    conversations = (read_text(columns.get(field)) for field in ("prompt", "raw_prompt"))
    conversation: Sequence[Any] = next((c for c in conversations if isinstance(c, list | tuple) and len(c)), [])
    users = [turn for turn in conversation if isinstance(turn, Mapping) and turn.get("role") == "user"]
    content = plain(users[-1].get("content")) if users else ""
    if isinstance(content, str):
        return content
    parts = [part for part in content or () if isinstance(part, Mapping)]
    return "".join(part.get("text") or "" for part in parts if part.get("type") in ("text", "input_text"))
