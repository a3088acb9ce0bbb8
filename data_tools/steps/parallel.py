# SPDX-License-Identifier: Apache-2.0
"""A step that treats each record alone, on all cores.

    read values ──▶ workers: parse, decide, encode ──▶ write lines, in order

Only text travels between the processes, because records take longer to send than to parse.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from data_tools.records.files import Ids
from data_tools.records.folders import whole_folder
from data_tools.records.left_out import rejected_value
from data_tools.steps.run import OnRecord, Outcome, Settled, StepReport, StepWriter, settle
from verl_p2r.cpus import available_cpus
from verl_p2r.data.errors import RowError
from verl_p2r.data.reading import RawRecord
from verl_p2r.data.record import Record

Each = Callable[[Record], Outcome]
"""Decides about one record. It must be picklable."""

Work = Callable[[list[tuple[int, RawRecord]]], list[Settled]]

CHUNK = 256  # records sent to a worker at a time
AHEAD = 4  # chunks in progress for each worker


def run_each(
    step: str,
    files: Sequence[Path],
    folder: Path,
    each: Each,
    *,
    settings: Mapping[str, Any],
    max_reject_share: float,
    on_record: OnRecord = lambda kept: None,
) -> StepReport:
    """Put the records of some files through a step, several at a time; the output is that of `run.run_step`.

    Args:
        step: name of the step.
        files: files of records, see `records.files.files_of`.
        folder: output folder; an earlier output is replaced.
        each: decides about one record.
        settings: settings to note in the manifest.
        max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        on_record: called once a record.

    Raises:
        ValueError: the folder cannot be used, or another process is writing it.
    """
    with whole_folder(folder, files) as place, StepWriter(step, files, place) as writer:
        settled = _unique(_settled(writer.source.values(), partial(_work, step, each)), on_record)
        return writer.write(settled, settings, max_reject_share)


def _settled(values: Iterable[RawRecord], work: Work) -> Iterator[tuple[int, RawRecord, Settled]]:
    """Settle values in order; the first chunk here, and any further ones in a process for each core."""
    numbered = iter(enumerate(values))
    chunks = iter(lambda: list(islice(numbered, CHUNK)), [])
    first, second = next(chunks, []), next(chunks, None)
    yield from _joined(first, work(first))
    if second is None:
        return
    workers = available_cpus()
    running: deque[tuple[list[tuple[int, RawRecord]], Future[list[Settled]]]] = deque()
    # Spawned, not forked: the thread of a progress bar may hold a lock.
    with ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent) as pool:
        for chunk in chain([second], chunks):
            running.append((chunk, pool.submit(work, chunk)))
            if len(running) >= AHEAD * workers:
                done, future = running.popleft()
                yield from _joined(done, future.result())
        for done, future in running:
            yield from _joined(done, future.result())


def _joined(chunk: list[tuple[int, RawRecord]], settled: list[Settled]) -> Iterator[tuple[int, RawRecord, Settled]]:
    for (index, raw), one in zip(chunk, settled, strict=True):
        yield index, raw, one


def _work(step: str, each: Each, chunk: list[tuple[int, RawRecord]]) -> list[Settled]:
    """Settle a chunk of values, in a worker."""
    settled = []
    for index, raw in chunk:
        try:
            record = Record.parse(raw.value, file=raw.file, line=raw.line, index=index)
        except RowError as error:
            settled.append(Settled("", reject=rejected_value(raw, error)))
        else:
            settled.append(settle(step, *each(record)))
    return settled


def _unique(settled: Iterable[tuple[int, RawRecord, Settled]], on_record: OnRecord) -> Iterator[Settled]:
    """Reject records whose id occurred before."""
    ids = Ids()
    for index, raw, one in settled:
        if one.problem_id:
            try:
                ids.add(one.problem_id, index + 1)
            except RowError as error:
                yield Settled("", reject=rejected_value(raw, error))
                continue
            on_record(one.line is not None)
        yield one


def _end_with_parent() -> None:
    """End this worker when its parent ends, even if the parent is killed; otherwise it would wait for work forever."""
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
