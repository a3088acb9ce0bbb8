# SPDX-License-Identifier: Apache-2.0
"""Step 2: a response stays when it keeps to the template and its answer is right (arXiv 2511.11113, §3)."""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path

from data_tools.records.files import AGREEMENT, Record
from data_tools.steps.run import Dropped, StepReport, Told, run_step
from verl_p2r.accuracy import answer_accuracy
from verl_p2r.cpus import available_cpus
from verl_p2r.data.rows import RowError
from verl_p2r.template import parse_response

Outcome = tuple[Record, RowError | None]

CHUNK = 256  # records that a worker takes at a time
AHEAD = 4  # chunks on their way to each worker


@dataclass(frozen=True)
class VerifySettings:
    """What a response must be.

    Args:
        min_accuracy: of its answer, in [0, 1]; the paper's is 0.6.
        strict: compare answers as Video-R1 does, to the letter.
    """

    min_accuracy: float = AGREEMENT
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_accuracy <= 1:
            raise ValueError(f"min_accuracy is {self.min_accuracy}: give a share between 0 and 1")


def verified(record: Record, settings: VerifySettings) -> Outcome:
    """Verify one record's response.

    Args:
        record: with a response, in `output` or in its parts.
        settings: what it must be.

    Returns:
        The record with `observation`, `process` (its thinking) and `reward` (its answer's accuracy) read from the
        response; and why it does not stay, if it does not.

    >>> record = Record("1", "How many?", "numerical", "video", "a.mp4", "3", output="<answer>3</answer>")
    >>> verified(record, VerifySettings())[1].reason
    'not in the template'
    """
    text = record.output if record.output is not None else record.response
    if text is None:
        return record, RowError("output", "no response", "field output is not set: generate responses first")
    parsed = parse_response(text)
    accuracy = answer_accuracy(
        record.problem_type,
        parsed.answer or "",
        record.solution,
        strict=settings.strict,
        options=record.options,
    )
    record = replace(
        record,
        output=text.strip(),
        observation=parsed.observation,
        process=parsed.think,
        reward=round(accuracy, 6),
        select=None,
    )
    off = [
        what
        for what, fine in (
            ("observation", parsed.perception_well_formed),
            ("think and answer", parsed.reasoning_well_formed),
        )
        if not fine
    ]
    if off:
        return record, Dropped("output", "not in the template", f"not as the template: its {' and its '.join(off)}")
    if accuracy < settings.min_accuracy:
        why = f"accuracy below {settings.min_accuracy:g}"
        return record, Dropped("output", why, f"its answer has an accuracy of {accuracy:.3f}")
    return record, None


def verify(
    files: Sequence[Path],
    folder: Path,
    settings: VerifySettings | None = None,
    *,
    max_reject_share: float = 0.01,
    told: Told = lambda kept: None,
) -> StepReport:
    """Keep the records of some files whose response is in the template and right.

    Args:
        files: of records with responses, see `records.files_of`.
        folder: for the output, see `steps`; an earlier output is replaced.
        settings: what a response must be.
        max_reject_share: the largest share of records, in [0, 1], that may be unreadable or without a response.
        told: told of each record: whether it goes on.

    Raises:
        ValueError: the folder cannot be used.
    """
    settings = settings or VerifySettings()

    def transform(records: Iterable[Record]) -> Iterator[Outcome]:
        for outcome in _many(records, settings):
            told(outcome[1] is None)
            yield outcome

    return run_step("verify", files, folder, transform, settings=asdict(settings), max_reject_share=max_reject_share)


def _many(records: Iterable[Record], settings: VerifySettings) -> Iterator[Outcome]:
    """Verify records, in their order; more than a handful of them in a process for each core."""
    left = iter(records)
    yield from _chunk(list(islice(left, CHUNK)), settings)
    second = list(islice(left, CHUNK))
    if not second:
        return
    workers = available_cpus()
    running: deque[Future[list[Outcome]]] = deque()
    # Not forked: a progress bar's thread may hold a lock.
    with ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent) as pool:
        for chunk in chain([second], iter(lambda: list(islice(left, CHUNK)), [])):
            running.append(pool.submit(_chunk, chunk, settings))
            if len(running) >= AHEAD * workers:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()


def _chunk(records: list[Record], settings: VerifySettings) -> list[Outcome]:
    return [verified(record, settings) for record in records]


def _end_with_parent() -> None:
    """A killed process leaves no workers behind, which would wait for work for ever."""
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
