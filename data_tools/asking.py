# SPDX-License-Identifier: Apache-2.0
"""A step that asks somebody about each record: many at a time, each reply kept, in two passes.

The first pass asks about the records that have no reply yet; the second goes through all of them in order and writes
the output. So the order of replies does not matter, and a run that was killed goes on where it was and ends as if it
had not been.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_tools.records import Record, Records
from data_tools.rejects import RejectLog
from data_tools.replies import Replies
from data_tools.steps import StepReport, run_step
from verl_p2r.chat_client import Unanswered
from verl_p2r.rows import RowError

_NEVER = (401, 403, 404)  # wrong key, wrong model: refused for every record
SILENT = 20  # so many records in a row without a reply, and twice as many as are in flight: nobody is there


class NobodyReplies(ValueError):
    """The server is gone, or refuses everything: to go on would reject all that is left."""


class Asker(Protocol):
    """Somebody who can be asked about records.

    Attributes:
        concurrency: how many records may be in hand at once.
        fingerprint: all that a reply hangs on beside the record.
    """

    concurrency: int
    fingerprint: Mapping[str, Any]

    async def ask(self, record: Record) -> dict[str, Any]:
        """Ask about one record.

        Returns:
            The reply, as JSON.

        Raises:
            Unanswered: no reply came.
            RowError: the record cannot be asked about.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


Read = Callable[[Record, dict[str, Any]], tuple[Record, RowError | None]]
"""What becomes of a record, given the reply: it goes on, or why it does not."""

Told = Callable[[bool], object]
"""Told of each record that has been asked about: whether it goes on."""


def count_records(files: Sequence[Path]) -> int:
    """How many records files hold that can be used."""
    return sum(1 for _ in Records(files, RejectLog(Path(os.devnull))))


def asking_step(
    step: str,
    files: Sequence[Path],
    folder: Path,
    asker: Asker,
    read: Read,
    *,
    settings: Mapping[str, Any],
    max_reject_share: float,
    told: Told = lambda kept: None,
) -> StepReport:
    """Ask about the records of some files.

    Args:
        step: the step's name.
        files: of records, see `records.files_of`.
        folder: for the output, see `steps`; replies are kept beside it, see `replies`.
        asker: who is asked.
        read: what becomes of a record.
        settings: for the manifest.
        max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        told: told of each record.

    Raises:
        NobodyReplies: what has come so far is kept; start again when the server is back.
        ValueError: the folder or the file of replies cannot be used.
    """
    print_of = hashlib.sha256(json.dumps(asker.fingerprint, sort_keys=True, default=str).encode())

    def key(record: Record) -> bytes:
        digest = print_of.copy()
        own = (record.problem_id, record.path, record.problem, record.options, record.solution, record.output)
        digest.update(json.dumps(own).encode())
        return digest.digest()

    def transform(records: Iterable[Record]) -> Iterator[tuple[Record, RowError | None]]:
        for record in records:
            reply = replies.get(key(record))
            yield read(record, reply) if reply is not None else (record, failed[key(record)])

    with Replies.beside(folder) as replies:
        records = Records(files, RejectLog(Path(os.devnull)))
        failed = asyncio.run(_ask_all(step, records, asker, key, read, replies, told))
        return run_step(step, files, folder, transform, settings=settings, max_reject_share=max_reject_share)


async def _ask_all(
    step: str,
    records: Iterable[Record],
    asker: Asker,
    key: Callable[[Record], bytes],
    read: Read,
    replies: Replies,
    told: Told,
) -> dict[bytes, RowError]:
    """Ask about the records that have no reply yet; gives those that got none, and why."""
    failed: dict[bytes, RowError] = {}
    slots = asyncio.Semaphore(asker.concurrency)
    tasks: set[asyncio.Task[None]] = set()
    stop: list[Exception] = []
    silent = 0

    async def one(record: Record) -> None:
        nonlocal silent
        try:
            reply = await asker.ask(record)
            silent = 0
            replies.put(key(record), reply)
            told(read(record, reply)[1] is None)
        except Unanswered as error:
            silent += 1
            failed[key(record)] = RowError("", "no reply", f"{error}: start the step again to ask once more")
            told(False)
            if error.status in _NEVER or silent >= max(SILENT, 2 * asker.concurrency):
                stop.append(NobodyReplies(f"{step}: {error}. What has come so far is kept: mend it and start again"))
        except RowError as error:
            failed[key(record)] = error
            told(False)
        except Exception as error:  # a fault of ours
            stop.append(error)
        finally:
            slots.release()

    try:
        for record in records:
            if (reply := replies.get(key(record))) is not None:
                told(read(record, reply)[1] is None)
                continue
            await slots.acquire()
            if stop:
                break
            tasks.add(task := asyncio.create_task(one(record)))
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    finally:
        replies.commit()
        await asker.aclose()
    if stop:
        raise stop[0]
    return failed
