# SPDX-License-Identifier: Apache-2.0
"""How good a judge is, what it costs and how fast it answers: table 4 of VideoP2R (arXiv 2511.11113) for any judge.

A judge is measured on labelled cases, one JSON object a line; `cases/judge_eval.jsonl` are ours, written by hand.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from verl_p2r.accuracy import PROBLEM_TYPES
from verl_p2r.judge import Judge, JudgeRequest, Verdict
from verl_p2r.judge.facts import Fact

_LABELS = {"Yes": True, "No": False}


@dataclass(frozen=True)
class Case:
    """One labelled observation.

    Args:
        request: what the judge is asked; its `row` names the case.
        label: whether the observation suffices.
        kind: what makes the case easy or hard, for example `missing fact`; may be empty.
    """

    request: JudgeRequest
    label: bool
    kind: str = ""


@dataclass(frozen=True)
class Result:
    """What a judge made of a case, and how long it took, in seconds."""

    case: Case
    verdict: Verdict
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the verdict is the label; no verdict is not."""
        return self.verdict.value is self.case.label

    def row(self) -> dict[str, Any]:
        """The result as one flat, JSON-ready record."""
        return {
            "id": self.case.request.row,
            "problem_type": self.case.request.problem_type,
            "kind": self.case.kind,
            "label": _said(self.case.label),
            "verdict": _said(self.verdict.value),
            "right": self.right,
            "reason": self.verdict.reason,
            "seconds": round(self.seconds, 4),
            "retries": self.verdict.retries,
            "prompt_tokens": self.verdict.prompt_tokens,
            "completion_tokens": self.verdict.completion_tokens,
        }


@dataclass(frozen=True)
class Score:
    """How well verdicts agree with labels.

    Args:
        cases: how many were judged.
        right: how many verdicts are the label.
        false_yes, false_no: how many say the opposite of a No, and of a Yes.
        no_verdict: how many cases stayed without one.
        kappa: Cohen's κ over the cases with a verdict, see `cohens_kappa`.
    """

    cases: int
    right: int
    false_yes: int
    false_no: int
    no_verdict: int
    kappa: float

    @property
    def accuracy(self) -> float:
        """The share of verdicts that are the label, of all cases: no verdict counts as wrong [ours]."""
        return self.right / self.cases if self.cases else math.nan


def load_cases(path: Path | None = None) -> list[Case]:
    """Read labelled cases from a JSONL file.

    Args:
        path: the file; None: the package's own. Each line is an object with `problem_type`, `question` (options
            included), `solution`, `observation` and `label` (`Yes` or `No`), and perhaps `id`, `kind` and `facts`.

    Raises:
        ValueError: naming file and line, when a line is no such object, an `id` occurs twice, or there is no case.

    >>> len(load_cases()) >= 60
    True
    """
    source = path or files("verl_p2r").joinpath("cases/judge_eval.jsonl")
    try:
        lines = source.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}: give a JSONL file of labelled cases") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is no UTF-8: save the file as UTF-8") from error
    cases: dict[str, Case] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path or 'judge_eval.jsonl'}, line {number}"
        try:
            case = _case(json.loads(line), number)
        except ValueError as error:  # JSONDecodeError is one
            raise ValueError(f"{where}: {error}") from error
        if cases.setdefault(case.request.row, case) is not case:
            raise ValueError(f"{where}: id {case.request.row!r} occurs twice: give each case its own")
    if not cases:
        raise ValueError(f"{path}: holds no case: write one JSON object a line")
    return list(cases.values())


def _case(row: Any, number: int) -> Case:
    if not isinstance(row, dict):
        raise ValueError(f"holds {type(row).__name__} where a JSON object belongs")
    for field in ("problem_type", "question", "solution", "observation"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise ValueError(f"field {field} is {row.get(field)!r}: give a text")
    if row["problem_type"] not in PROBLEM_TYPES:
        raise ValueError(f"field problem_type is {row['problem_type']!r}: give one of {', '.join(PROBLEM_TYPES)}")
    if not isinstance(row.get("label"), str) or row["label"] not in _LABELS:
        raise ValueError(f'field label is {row.get("label")!r}: give "Yes" or "No"')
    request = JudgeRequest(
        question=row["question"],
        solution=row["solution"],
        observation=row["observation"],
        problem_type=row["problem_type"],
        facts=Fact.parse_all(row.get("facts")),
        row=str(row.get("id", f"line {number}")),
    )
    return Case(request, _LABELS[row["label"]], str(row.get("kind", "")))


async def evaluate(
    judge: Judge, cases: Sequence[Case], concurrency: int = 32, done: Callable[[Result], object] = lambda result: None
) -> list[Result]:
    """Put every case to a judge, itself and not its cache.

    Args:
        judge: the judge.
        cases: what to ask.
        concurrency: how many cases at most are with the judge at a time; the seconds of a result begin when its case
            is put to the judge.
        done: called with each result as it comes.

    Returns:
        The results, in the order of the cases.
    """
    turn = asyncio.Semaphore(concurrency)
    put = getattr(judge, "ask_anew", judge.judge)

    async def one(case: Case) -> Result:
        async with turn:
            start = time.perf_counter()
            verdict = await put(case.request)
            result = Result(case, verdict, time.perf_counter() - start)
        done(result)
        return result

    tasks = [asyncio.ensure_future(one(case)) for case in cases]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # after an exception, what has not begun never does
            task.cancel()


def score(results: Iterable[Result]) -> Score:
    """Count what is right and what is not.

    >>> request = JudgeRequest("Which?", "A", "a red ball")
    >>> verdicts = [(True, True), (True, False), (False, True), (False, None)]
    >>> score([Result(Case(request, label), Verdict(value, ""), 1.0) for label, value in verdicts])
    Score(cases=4, right=1, false_yes=1, false_no=1, no_verdict=1, kappa=-0.5)
    """
    pairs = [(result.case.label, result.verdict.value) for result in results]
    decided = [(label, value) for label, value in pairs if value is not None]
    return Score(
        cases=len(pairs),
        right=sum(label is value for label, value in pairs),
        false_yes=decided.count((False, True)),
        false_no=decided.count((True, False)),
        no_verdict=len(pairs) - len(decided),
        kappa=cohens_kappa(decided),
    )


def cohens_kappa(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Measure how far two raters agree beyond chance: 1 always, 0 as chance would, below 0 less.

        κ = (p_o − p_e) / (1 − p_e)                                              (Cohen, 1960)

    with p_o the share of pairs that agree, and p_e the share expected from how often each rater says Yes.

    Returns:
        κ; NaN without pairs, and where chance alone explains all: both raters always say the same one word.

    >>> cohens_kappa([(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15)
    0.4
    """
    if not pairs:
        return math.nan
    count = len(pairs)
    agree = sum(a == b for a, b in pairs)
    first, second = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    chance = first * second + (count - first) * (count - second)  # in units of count², so that it stays whole
    return (agree * count - chance) / (count**2 - chance) if chance != count**2 else math.nan


def percentile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that at least this share of the values does not exceed (nearest rank); NaN without any.

    >>> percentile([0.1, 0.2, 0.3, 0.4], 0.5), percentile([0.1, 0.2, 0.3, 0.4], 0.95)
    (0.2, 0.4)
    """
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)] if values else math.nan


def _said(value: bool | None) -> str | None:
    return None if value is None else "Yes" if value else "No"
