# SPDX-License-Identifier: Apache-2.0
"""Scores of single items: one record with a reply in, one `ItemScore` out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_p2r.accuracy import answer_text
from verl_p2r.evaluation.protocol import BENCHMARKS, Protocol, canonical
from verl_p2r.evaluation.readers import Question, Reply, lenient, texts_of
from verl_p2r.template import parse_response

CUT = "length"
"""The `finish_reason` of a reply that was cut off by `max_tokens`."""

NO_REPLY = "no reply"


@dataclass(frozen=True)
class ItemScore:
    """The score of one reply.

    Args:
        benchmark: name of the benchmark in the record.
        key: identifies the item within its benchmark; None where the record has no `problem_id`.
        group: question type or task; empty without one.
        metric: `mra` for numbers of regression, else `accuracy`.
        strict: score by the protocol's reader, in [0, 1].
        lenient: score by the lenient comparison of training, in [0, 1].
        video: cluster of the item in clustered intervals.
        well_formed: whether both segments follow the template.
        cut: whether the reply was cut off by `max_tokens`.
        lost: why there is no reply; None when there is one. A lost item scores 0.
        length: length of the reply, in tokens if the record has their number, else in characters; 0 without a reply.
        by: other categories, name → value.
    """

    benchmark: str
    key: str | None
    group: str
    metric: str
    strict: float
    lenient: float
    video: str
    well_formed: bool
    cut: bool
    lost: str | None
    length: int
    by: Mapping[str, str] = field(default_factory=dict)


def score_response(
    response: str,
    solution: str,
    problem_type: str,
    *,
    protocol: str | Protocol = "video_r1",
    benchmark: str = "",
    options: Iterable[object] | None = None,
) -> tuple[float, float]:
    """Score one reply, as `score` and the validation during training do.

    Args:
        response: the whole reply.
        solution: the true answer, with or without its `<answer>` tags.
        problem_type: one of `accuracy.PROBLEM_TYPES`.
        protocol: a protocol, or its name.
        benchmark: name of the benchmark, which decides the protocol's reader.
        options: options of a multiple choice question.

    Returns:
        The strict score, by the protocol's reader, and the lenient one, both in [0, 1].

    Raises:
        ValueError: the protocol or the problem type is unknown.

    >>> score_response("<answer>(B)</answer>", "B", "multiple choice", options=["A. red", "B. blue"])
    (0.0, 1.0)
    """
    rules = protocol if isinstance(protocol, Protocol) else Protocol.load(protocol)
    texts = texts_of(None if options is None else list(options))
    question = Question(problem_type, answer_text(solution), texts, rules.inclusive)
    reply = Reply.of(response)
    return rules.reader(benchmark)(reply, question), lenient(reply, question)


def validation_scores(
    benchmark: str,
    response: str,
    solution: str,
    problem_type: str,
    options: Iterable[object] | None = None,
    protocol: str = "video_r1",
) -> tuple[float, float] | None:
    """Score a reply of a validation during training exactly as `score` does.

    Args:
        benchmark: `data_source` of the row.
        response: the whole reply.
        solution: the true answer.
        problem_type: one of `accuracy.PROBLEM_TYPES`.
        options: options of a multiple choice question.
        protocol: name of a protocol.

    Returns:
        The strict and the lenient score; None if the data source is not one of the paper's benchmarks.

    Raises:
        ValueError: the protocol or the problem type is unknown.

    >>> validation_scores("mmvu", "<answer>B</answer>", "B", "multiple choice"), validation_scores("STAR", "", "", "")
    ((1.0, 1.0), None)
    """
    if canonical(benchmark) not in BENCHMARKS:
        return None
    return score_response(response, solution, problem_type, protocol=protocol, benchmark=benchmark, options=options)


def score_item(record: Mapping[str, Any], protocol: Protocol, index: int = 0) -> ItemScore:
    """Score one record.

    Args:
        record: a record, see `evaluation.score`.
        protocol: the protocol.
        index: number of the record, for errors.

    Raises:
        ValueError: naming the record and the field that is missing or wrong.
    """
    benchmark, solution = (_text(record, name, index) for name in ("benchmark", "solution"))
    response, lost = record.get("response"), record.get("lost") or None
    if response is None:
        lost = lost or NO_REPLY
    elif not isinstance(response, str):
        raise ValueError(f"record {index}: field response is a {type(response).__name__}: give a text, or None")
    text = "" if lost else response or ""
    try:
        strict, loose = score_response(
            text,
            solution,
            record.get("problem_type") or "",
            protocol=protocol,
            benchmark=benchmark,
            options=record.get("options"),
        )
    except ValueError as error:
        raise ValueError(f"record {index} of {benchmark}: {error}") from None
    parsed = parse_response(text)
    key = record.get("problem_id")
    return ItemScore(
        benchmark=benchmark,
        key=None if key is None else str(key),
        group=str(record.get("question_type") or record.get("task") or ""),
        metric="mra" if record["problem_type"] == "regression" else "accuracy",
        strict=0.0 if lost else strict,
        lenient=0.0 if lost else loose,
        video=str(record.get("video_id") or f"item {index}"),
        well_formed=parsed.perception_well_formed and parsed.reasoning_well_formed,
        cut=record.get("finish_reason") == CUT,
        lost=str(lost) if lost else None,
        length=record.get("completion_tokens") or len(text),
        by=record.get("categories") or {},
    )


def score_items(records: Iterable[Mapping[str, Any]], protocol: Protocol) -> list[ItemScore]:
    """Score records; the same item twice counts once.

    Args:
        records: the records, see `evaluation.score`.
        protocol: the protocol; question types that it leaves out are not scored.

    Raises:
        ValueError: a field of a record is missing or wrong, or two records of one `problem_id` have different replies.
    """
    scores: list[ItemScore] = []
    seen: dict[tuple[str, str], Any] = {}
    for index, record in enumerate(records):
        if (record.get("question_type") or record.get("task")) in protocol.left_out:
            continue
        key = record.get("problem_id")
        if key is not None:
            name = str(record.get("benchmark")), str(key)
            reply = record.get("response"), record.get("lost")
            if name in seen:
                if seen[name] != reply:
                    raise ValueError(
                        f"record {index}: {name[0]} {name[1]} occurs twice, with different replies: score one run at a "
                        "time, or compare them"
                    )
                continue
            seen[name] = reply
        scores.append(score_item(record, protocol, index))
    return scores


def _text(record: Mapping[str, Any], name: str, index: int) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"record {index}: field {name} is {value!r}: give a text")
    return value
