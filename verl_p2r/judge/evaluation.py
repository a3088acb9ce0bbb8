# SPDX-License-Identifier: Apache-2.0
"""Measures a judge's quality, cost and speed on labelled cases: table 4 of VideoP2R (arXiv 2511.11113) for any judge.

Cases are JSON objects, one per line. The package's own, `judge/cases/judge_eval.jsonl`, were written by hand; those for
the judge `visual` are made by `visual_cases`.
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

from verl_p2r.accuracy import is_problem_type, problem_types
from verl_p2r.judge.facts import Fact
from verl_p2r.judge.protocol import Judge, JudgeRequest, Verdict

_LABELS = {"Yes": True, "No": False}


@dataclass(frozen=True)
class Case:
    """One labelled observation.

    Args:
        request: What the judge is asked; its `row` names the case.
        label: Whether the observation suffices.
        kind: What makes the case easy or hard, for example `missing fact`; may be empty.
    """

    request: JudgeRequest
    label: bool
    kind: str = ""


@dataclass(frozen=True)
class Result:
    """A judge's verdict on a case.

    Args:
        case: The case.
        verdict: The judge's verdict.
        seconds: How long the judge took, in seconds.
    """

    case: Case
    verdict: Verdict
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the verdict equals the label; no verdict is wrong."""
        return self.verdict.value is self.case.label

    def row(self) -> dict[str, Any]:
        """Return the result as a flat record of JSON values."""
        return {
            "id": self.case.request.row,
            "problem_type": self.case.request.problem_type,
            "kind": self.case.kind,
            "label": _word(self.case.label),
            "verdict": _word(self.verdict.value),
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
        cases: The number of judged cases.
        right: The number of verdicts that equal their label.
        false_yes: The number of Yes verdicts on cases labelled No.
        false_no: The number of No verdicts on cases labelled Yes.
        no_verdict: The number of cases without a verdict.
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
        """The share of all cases whose verdict equals the label; no verdict counts as wrong [ours]."""
        return self.right / self.cases if self.cases else math.nan


def load_cases(path: Path | None = None) -> list[Case]:
    """Read labelled cases from a JSONL file.

    Args:
        path: The file; None: the package's own. Each line is an object with `problem_type`, `question` (options
            included), `solution`, `observation` and `label` (`Yes` or `No`), and optionally `id`, `kind`, `facts`, and
            `video` or `image`, a path relative to the file's folder.

    Raises:
        ValueError: A line is not such an object, an `id` occurs twice, or the file has no case; the message names file
            and line.

    >>> len(load_cases()) >= 60
    True
    """
    source = path or files("verl_p2r").joinpath("judge/cases/judge_eval.jsonl")
    try:
        lines = source.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}: give a JSONL file of labelled cases") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8: save the file as UTF-8") from error
    cases: dict[str, Case] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path or 'judge_eval.jsonl'}, line {number}"
        try:
            case = _case(json.loads(line), number, Path(path).parent if path else None)
        except ValueError as error:  # JSONDecodeError is one
            raise ValueError(f"{where}: {error}") from error
        if cases.setdefault(case.request.row, case) is not case:
            raise ValueError(f"{where}: id {case.request.row!r} occurs twice: give each case a different id")
    if not cases:
        raise ValueError(f"{path}: contains no case: write one JSON object per line")
    return list(cases.values())


def _case(row: Any, number: int, folder: Path | None) -> Case:
    if not isinstance(row, dict):
        raise ValueError(f"contains a {type(row).__name__}: give a JSON object")
    for field in ("problem_type", "question", "solution", "observation"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise ValueError(f"field {field} is {row.get(field)!r}: give a text")
    if not is_problem_type(row["problem_type"]):
        raise ValueError(f"field problem_type is {row['problem_type']!r}: give one of {', '.join(problem_types())}")
    if not isinstance(row.get("label"), str) or row["label"] not in _LABELS:
        raise ValueError(f'field label is {row.get("label")!r}: give "Yes" or "No"')
    request = JudgeRequest(
        question=row["question"],
        solution=row["solution"],
        observation=row["observation"],
        problem_type=row["problem_type"],
        facts=Fact.parse_all(row.get("facts")),
        row=str(row.get("id", f"line {number}")),
        media=_media(row, folder or Path()),
    )
    return Case(request, _LABELS[row["label"]], str(row.get("kind", "")))


def _media(row: dict[str, Any], folder: Path) -> tuple[dict[str, Any], ...]:
    media = []
    for kind in ("video", "image"):
        if (name := row.get(kind)) is None:
            continue
        if not isinstance(name, str) or not (folder / name).is_file():
            raise ValueError(f"field {kind} is {name!r}: give the path of a file, relative to {folder}")
        media.append({"type": kind, kind: str(folder / name)})
    return tuple(media)


async def evaluate(
    judge: Judge, cases: Sequence[Case], concurrency: int = 32, done: Callable[[Result], object] = lambda result: None
) -> list[Result]:
    """Ask a judge about every case, without using its cache.

    Args:
        judge: The judge.
        cases: What to ask.
        concurrency: The most cases that the judge handles at a time. A result's seconds do not include waiting for a
            turn.
        done: Called with each result as it arrives.

    Returns:
        The results, in the order of the cases.
    """
    turn = asyncio.Semaphore(concurrency)
    judge_anew = getattr(judge, "ask_anew", judge.judge)

    async def one(case: Case) -> Result:
        async with turn:
            start = time.perf_counter()
            verdict = await judge_anew(case.request)
            result = Result(case, verdict, time.perf_counter() - start)
        done(result)
        return result

    tasks = [asyncio.ensure_future(one(case)) for case in cases]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # after an exception, the remaining cases are not asked
            task.cancel()


def score(results: Iterable[Result]) -> Score:
    """Count right and wrong verdicts.

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
    """Measure how far two raters agree beyond chance: 1 always, 0 as often as by chance, below 0 less often.

        κ = (p_o − p_e) / (1 − p_e)                                              (Cohen, 1960)

    with p_o the share of pairs that agree, and p_e the share expected from how often each rater says Yes.

    Returns:
        κ; NaN without pairs, or if both raters always give the same label, so that chance explains everything.

    >>> cohens_kappa([(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15)
    0.4
    """
    if not pairs:
        return math.nan
    count = len(pairs)
    agree = sum(a == b for a, b in pairs)
    first, second = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    chance = first * second + (count - first) * (count - second)  # in units of count², to stay an integer
    return (agree * count - chance) / (count**2 - chance) if chance != count**2 else math.nan


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed (nearest rank).

    Args:
        values: Any numbers; without any, the result is NaN.
        share: A share in [0, 1].

    >>> percentile([0.1, 0.2, 0.3, 0.4], 0.5), percentile([0.1, 0.2, 0.3, 0.4], 0.95)
    (0.2, 0.4)
    """
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)] if values else math.nan


def _word(value: bool | None) -> str | None:
    return None if value is None else "Yes" if value else "No"
