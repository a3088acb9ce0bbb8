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
from typing import Any, Protocol, runtime_checkable

from data_tools.folders import check_folder
from data_tools.records import Record, Records
from data_tools.rejects import RejectLog
from data_tools.replies import Replies
from data_tools.steps import StepReport, Told, run_step
from verl_p2r.chat_client import Unanswered
from verl_p2r.rows import RowError

_NEVER = (401, 403, 404)  # wrong key, wrong model: refused for every record
SILENT = 20  # so many records in a row without a reply, and no fewer than are in hand: nobody is there

_AGAIN = RowError("", "no reply", "it came while the step ran: start the step again")


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


class Asked:
    """What is known of the records: replies are kept as they come, and why there is none.

    Args:
        fingerprint: all that a reply hangs on beside the record.
        read: what becomes of a record.
        replies: where they are kept.
        told: told of each record.

    Attributes:
        silent: how many records in a row got no reply.
    """

    def __init__(self, fingerprint: Mapping[str, Any], read: Read, replies: Replies, told: Told) -> None:
        self._print = hashlib.sha256(json.dumps(fingerprint, sort_keys=True, default=str).encode())
        self._read, self._replies, self._told = read, replies, told
        self._failed: dict[bytes, RowError] = {}
        self.silent = 0

    def known(self, record: Record) -> bool:
        """Whether a record's reply is kept already."""
        reply = self._replies.get(self._key(record))
        if reply is not None:
            self._told(self._read(record, reply)[1] is None)
        return reply is not None

    def replied(self, record: Record, reply: dict[str, Any]) -> None:
        """Keep a reply."""
        self.silent = 0
        self._replies.put(self._key(record), reply)
        self._told(self._read(record, reply)[1] is None)

    def no_reply(self, record: Record, why: str) -> None:
        """Nobody has replied; perhaps another time."""
        self.silent += 1
        self.unusable(record, RowError("", "no reply", f"{why}: start the step again to ask once more"))

    def useless(self, record: Record, why: str) -> None:
        """There were replies, but none of use."""
        self.silent = 0
        self.unusable(record, RowError("", "useless reply", f"{why}: start the step again to ask once more"))

    def refused(self, record: Record, why: str) -> None:
        """Whoever is asked does not take this record."""
        self.silent = 0
        self.unusable(record, RowError("", "refused", why))

    def unusable(self, record: Record, why: RowError) -> None:
        """The record cannot be asked about."""
        self._failed[self._key(record)] = why
        self._told(False)

    def transform(self, records: Iterable[Record]) -> Iterator[tuple[Record, RowError | None]]:
        """The second pass, see `steps.run_step`."""
        for record in records:
            reply = self._replies.get(self._key(record))
            if reply is None:
                yield record, self._failed.get(self._key(record)) or _AGAIN
            else:
                yield self._read(record, reply)

    def _key(self, record: Record) -> bytes:
        digest = self._print.copy()
        own = (
            *(record.problem_id, record.problem_type, record.problem, record.options, record.solution),
            *(record.data_type, record.path, dict(record.media), list(record.facts)),
            *(record.observation, record.process, record.output),
        )
        digest.update(json.dumps(own).encode())
        return digest.digest()


@runtime_checkable
class BatchAsker(Protocol):
    """Somebody who takes all records at once and minds the order of work alone.

    Attributes:
        fingerprint: all that a reply hangs on beside the record.
    """

    fingerprint: Mapping[str, Any]

    def ask_all(self, records: Iterable[Record], asked: Asked) -> None:
        """Ask about the records that `asked` does not know, and tell it what comes.

        Raises:
            NobodyReplies: to go on is no use.
        """
        ...


def asking_step(
    step: str,
    files: Sequence[Path],
    folder: Path,
    asker: Asker | BatchAsker,
    read: Read,
    *,
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
        max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        told: told of each record.

    Raises:
        NobodyReplies: what has come so far is kept; start again when the server is back.
        ValueError: the folder or the file of replies cannot be used.
    """
    check_folder(folder, files)  # before anything is paid
    with Replies.beside(folder) as replies:
        records = Records(files, RejectLog(Path(os.devnull)))
        asked = Asked(asker.fingerprint, read, replies, told)
        if isinstance(asker, BatchAsker):
            asker.ask_all(records, asked)
        else:
            asyncio.run(_ask_each(step, records, asker, asked))
        return run_step(
            step, files, folder, asked.transform, settings=asker.fingerprint, max_reject_share=max_reject_share
        )


async def _ask_each(step: str, records: Iterable[Record], asker: Asker, asked: Asked) -> None:
    """Ask about the records that have no reply yet, one by one, many at a time."""
    slots = asyncio.Semaphore(asker.concurrency)
    tasks: set[asyncio.Task[None]] = set()
    stop: list[Exception] = []

    async def one(record: Record) -> None:
        try:
            asked.replied(record, await asker.ask(record))
        except Unanswered as error:
            if error.useless:
                asked.useless(record, str(error))
            elif error.status is not None and error.status not in _NEVER:
                asked.refused(record, str(error))
            else:
                asked.no_reply(record, str(error))
            if error.status in _NEVER or asked.silent >= max(SILENT, asker.concurrency):
                stop.append(NobodyReplies(f"{step}: {error}. What has come so far is kept: mend it and start again"))
        except RowError as error:
            asked.unusable(record, error)
        except Exception as error:  # a fault of ours
            stop.append(error)
        finally:
            slots.release()

    try:
        for number, record in enumerate(records):
            if asked.known(record):
                if number % 100 == 0:
                    await asyncio.sleep(0)  # the calls in flight must not wait until all known ones are read
                continue
            await slots.acquire()
            if stop:
                break
            tasks.add(task := asyncio.create_task(one(record)))
            task.add_done_callback(tasks.discard)
        if stop:
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await asker.aclose()
    if stop:
        raise stop[0]
