# SPDX-License-Identifier: Apache-2.0
"""A record as the page shows it, its texts shortened."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from verl_p2r.accuracy import answer_accuracy, answer_text
from verl_p2r.data.record import Medium, Record
from verl_p2r.template import parse_response

STATES = ("kept", "dropped")
TEXT = 20_000  # characters shown of a text
OPTION, OPTIONS = 1_000, 120  # characters shown of an option, and options shown of a question


@dataclass(frozen=True)
class Option:
    """One option of a question.

    Args:
        text: its text.
        correct: whether the solution names it.
        chosen: whether the response names it.
    """

    text: str
    correct: bool
    chosen: bool


@dataclass(frozen=True)
class Card:
    """A record as the page shows it, its texts shortened.

    Args:
        record: `problem_id` of the record.
        where: file and line that it was read from.
        problem_type: as in `Record`.
        modality: `data_type` of the record.
        source: `data_source` of the record.
        path: as in `Record`.
        question: `problem` of the record.
        options: the first options.
        more_options: number of further options.
        solution: text of the solution.
        medium: the medium.
        state: one of `STATES`.
        reason: short reason for dropping it, with the name of the step.
        message: the full reason.
        observation: observation of the response.
        think: thinking of the response.
        answer: answer of the response.
        raw: the whole response if it does not follow the template, else empty.
        accuracy: accuracy of the answer, in [0, 1].
        verdict: `value`, `reason` and `source` of the judge's verdict.
        generated_by: name of the model that generated the response, if a step noted it.
        more: all other fields, as JSON.
    """

    record: str
    where: str
    problem_type: str
    modality: str
    source: str
    path: str
    question: str
    options: tuple[Option, ...]
    more_options: int
    solution: str
    medium: Medium
    state: str
    reason: str
    message: str
    observation: str
    think: str
    answer: str
    raw: str
    accuracy: float | None
    verdict: Mapping[str, Any] | None
    generated_by: str
    more: str

    @classmethod
    def of(cls, record: Record) -> "Card":
        """Make the card of a record."""
        observation, think, answer, raw = _response(record)
        step, reason, message = _drop(record)
        verdict = record.extra.get("verdict")
        own = ("dropped", "verdict", "generated_by")
        more = {name: value for name, value in record.extra.items() if name not in own}
        more |= {name: value for name in ("media", "facts") if (value := getattr(record, name))}
        return cls(
            record=_short(record.problem_id, OPTION),
            where=f"{record.file}:{record.line}",
            problem_type=record.problem_type,
            modality=record.data_type,
            source=_short(record.data_source, OPTION),
            path=_short(record.path, OPTION),
            question=_short(record.problem),
            options=tuple(_options(record, answer)),
            more_options=max(len(record.options) - OPTIONS, 0),
            solution=_short(answer_text(record.solution)),
            medium=record.medium,
            state=state_of(record),
            reason=": ".join(filter(None, (step, reason))),
            message=message,
            observation=_short(observation),
            think=_short(think),
            answer=_short(answer),
            raw=_short(raw),
            accuracy=record.reward,
            verdict={name: _said(verdict.get(name)) for name in ("value", "reason", "source")}
            if isinstance(verdict, Mapping)
            else None,
            generated_by=_said(record.extra.get("generated_by")),
            more=_short(json.dumps(more, ensure_ascii=False, indent=2)) if more else "",
        )


def state_of(record: Record) -> str:
    """Return one of `STATES`."""
    return STATES[record.extra.get("dropped") is not None or record.select is False]


def _drop(record: Record) -> tuple[str, str, str]:
    """Return step, reason and message of a dropped record; empty texts for one that was kept."""
    dropped = record.extra.get("dropped")
    if isinstance(dropped, Mapping):
        step, reason, message = (_said(dropped.get(name)) for name in ("step", "reason", "message"))
        return step, reason or "no reason given", message
    return ("", "not selected", "field select is false") if state_of(record) == "dropped" else ("", "", "")


def _response(record: Record) -> tuple[str, str, str, str]:
    """Return observation, thinking and answer of a response, as far as it has them, and all of a malformed one."""
    whole = record.output or (record.process if "<observation>" in (record.process or "") else None)
    if whole:
        parsed = parse_response(whole)
        raw = "" if parsed.perception_well_formed and parsed.reasoning_well_formed else whole
        return parsed.observation or "", parsed.think or "", parsed.answer or "", raw
    observation, process = record.observation or "", record.process or ""
    return parse_response(observation).observation or observation, parse_response(process).think or process, "", ""


def _options(record: Record, answer: str) -> Iterator[Option]:
    def same(option: str, text: str) -> bool:
        return answer_accuracy("multiple choice", option, text, options=record.options) == 1

    for option in record.options[:OPTIONS]:
        yield Option(_short(option, OPTION), same(option, record.solution), same(option, answer))


def _said(value: Any) -> str:
    """Return any JSON value as text."""
    return "" if value is None else _short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _short(text: str, most: int = TEXT) -> str:
    """Cut off the end of a long text.

    >>> _short("a long text", 6)
    'a long … [5 more characters]'
    """
    return text if len(text) <= most else f"{text[:most]} … [{len(text) - most:,} more characters]"
