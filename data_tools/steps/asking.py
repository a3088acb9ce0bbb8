# SPDX-License-Identifier: Apache-2.0
"""A step that asks somebody about each record: many at a time, each reply kept, in two passes.

The first pass asks about the records that have no reply yet; the second goes through all of them in order and writes
the output. So the order of replies does not matter, and a run that was killed goes on where it was and ends as if it
had not been. A reply that is not what the step expects, whether it has just come or was kept earlier, does not count.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from data_tools.records.files import Record, Records
from data_tools.records.folders import whole_folder
from data_tools.records.rejects import RejectLog
from data_tools.steps.replies import KEYS, Replies
from data_tools.steps.run import StepReport, Told, write_step
from verl_p2r.chat.client import Unanswered
from verl_p2r.data.rows import RowError

_NEVER = (401, 403, 404)  # wrong key, wrong model: refused for every record
SILENT = 20  # consecutive unanswered records (or `concurrency`, if larger) after which the server is checked

_AGAIN = RowError(
    "", "no reply", "there is no reply to it as it is now; it or its medium changed while the step ran: start again"
)


class NobodyReplies(ValueError):
    """The server is gone, or refuses everything: to go on would reject all that is left."""


class Asker(Protocol):
    """Somebody who can be asked about records.

    Attributes:
        concurrency: how many records may be in hand at once.
        fingerprint: every input except the record and its medium that determines a reply.
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

    async def check(self) -> None:
        """Ask something that whoever works can answer: called when many records in a row got no reply.

        Raises:
            NobodyReplies, Unanswered: there is no reply to that either.
        """
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...


Shape = Mapping[str, type]
"""The fields of a reply and their types."""

Read = Callable[[Record, dict[str, Any]], tuple[Record, RowError | None]]
"""What becomes of a record, given the reply: it goes on, or why it does not."""


class Question(NamedTuple):
    """A record to ask about, and the key under which its reply is kept.

    The key stays the same when the medium changes while the record waits: the reply may then be about either file, so
    the second pass must not find it.
    """

    record: Record
    key: bytes


def usable(reply: Any, shape: Shape) -> dict[str, Any] | None:
    """The fields of a reply that a step reads; None when one is missing, of another type, or not valid Unicode.

    >>> usable({"output": "a ball", "more": 1}, {"output": str})
    {'output': 'a ball'}
    >>> usable({"value": "maybe"}, {"value": bool}) is None, usable({"output": chr(0xD83D)}, {"output": str}) is None
    (True, True)
    """
    if not isinstance(reply, dict):
        return None
    for name, kind in shape.items():
        if type(reply.get(name)) is not kind:
            return None
    own = {name: reply[name] for name in shape}
    try:
        for value in own.values():
            if isinstance(value, str):
                value.encode()
    except UnicodeEncodeError:
        return None
    return own


class Asked:
    """What is known of the records: replies are kept as they come, and why there is none.

    Args:
        fingerprint: every input except the record and its medium that determines a reply.
        read: what becomes of a record.
        shape: of a usable reply.
        replies: where they are kept.
        root: the folder that the records' paths start from; None when the media are not known.
        told: called with each record's fate.

    Attributes:
        silent: how many records in a row got no reply.
    """

    def __init__(
        self,
        fingerprint: Mapping[str, Any],
        read: Read,
        shape: Shape,
        replies: Replies,
        root: Path | None = None,
        told: Told = lambda kept: None,
    ) -> None:
        self._print = hashlib.sha256(json.dumps([KEYS, fingerprint], sort_keys=True, default=str).encode())
        self._read, self._shape, self._replies, self._told = read, shape, replies, told
        self._root = None if root is None else str(root)
        self._failed: dict[bytes, RowError] = {}
        self.silent = 0

    def question(self, record: Record) -> Question | None:
        """The record as a question; None when a usable reply is kept already."""
        key = self._key(record)
        reply = self._kept(key)
        if reply is None:
            return Question(record, key)
        self._told(self._read(record, reply)[1] is None)
        return None

    def replied(self, question: Question, reply: dict[str, Any]) -> None:
        """Keep a reply."""
        own = usable(reply, self._shape)
        if own is None:
            self.useless(question, f"the reply is not valid text, or not of the fields {', '.join(self._shape)}")
            return
        self.silent = 0
        self._replies.put(question.key, own)
        self._told(self._read(question.record, own)[1] is None)

    def no_reply(self, question: Question, why: str) -> None:
        """Nobody has replied; perhaps another time."""
        self.silent += 1
        self.unusable(question, RowError("", "no reply", f"{why}: start the step again to ask once more"))

    def useless(self, question: Question, why: str) -> None:
        """There were replies, but none of use."""
        self.silent = 0
        self.unusable(question, RowError("", "useless reply", f"{why}: start the step again to ask once more"))

    def refused(self, question: Question, why: str) -> None:
        """Whoever is asked does not take this record."""
        self.silent = 0
        self.unusable(question, RowError("", "refused", why))

    def unusable(self, question: Question, why: RowError) -> None:
        """The record cannot be asked about."""
        self._failed[question.key] = why
        self._told(False)

    def transform(self, records: Iterable[Record]) -> Iterator[tuple[Record, RowError | None]]:
        """The second pass, see `steps.write_step`."""
        for record in records:
            key = self._key(record)
            reply = self._kept(key)
            if reply is None:
                yield record, self._failed.get(key) or _AGAIN
            else:
                yield self._read(record, reply)

    def _kept(self, key: bytes) -> dict[str, Any] | None:
        return usable(self._replies.get(key), self._shape)

    def _key(self, record: Record) -> bytes:
        digest = self._print.copy()
        own = (
            *(record.problem_id, record.problem_type, record.problem, record.options, record.solution),
            *(record.data_type, record.path, dict(record.media), list(record.facts)),
            *(record.observation, record.process, record.output),
            None if self._root is None else _state(os.path.join(self._root, record.path)),
        )
        digest.update(json.dumps(own).encode())
        return digest.digest()


def _state(path: str) -> tuple[int, int] | None:
    """Size and modification time of a file, which change when its content does; None without a file."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # also a name that cannot be one; whoever reads the medium says so
        return None
    return stat.st_size, stat.st_mtime_ns


@runtime_checkable
class BatchAsker(Protocol):
    """Somebody who takes all records at once and orders the work alone.

    Attributes:
        fingerprint: every input except the record and its medium that determines a reply.
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
    shape: Shape,
    *,
    max_reject_share: float,
    root: Path | None = None,
    told: Told = lambda kept: None,
) -> StepReport:
    """Ask about the records of some files.

    Args:
        step: the step's name.
        files: of records, see `records.files_of`.
        folder: for the output, see `steps`; replies are kept beside it, see `replies`.
        asker: who is asked.
        read: what becomes of a record, given a usable reply.
        shape: of a usable reply.
        max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        root: the folder that the records' paths start from. A reply is then asked for again when the size or the
            modification time of its medium changes. None: media do not matter.
        told: called with each record's fate.

    Raises:
        NobodyReplies: what has come so far is kept; start again when the server is back.
        ValueError: the folder or the file of replies cannot be used.
    """
    # The folder comes first: whether it can be written is known before anything is paid.
    with whole_folder(folder, files) as partial, Replies.beside(folder) as replies:
        records = Records(files, RejectLog(Path(os.devnull)))
        asked = Asked(asker.fingerprint, read, shape, replies, root, told)
        if isinstance(asker, BatchAsker):
            asker.ask_all(records, asked)
        else:
            asyncio.run(_ask_each(step, records, asker, asked))
        return write_step(
            step, files, partial, asked.transform, settings=asker.fingerprint, max_reject_share=max_reject_share
        )


async def _ask_each(step: str, records: Iterable[Record], asker: Asker, asked: Asked) -> None:
    """Ask about the records that have no reply yet, one by one, many at a time."""
    slots = asyncio.Semaphore(asker.concurrency)
    tasks: set[asyncio.Task[None]] = set()
    stop: list[Exception] = []

    async def answered_otherwise() -> bool:
        """Whether the silence, if it has lasted, is the fault of the records and not of whoever is asked."""
        if asked.silent < max(SILENT, asker.concurrency):
            return True
        asked.silent = 0  # one check at a time
        try:
            await asker.check()
        except (NobodyReplies, Unanswered):
            return False
        return True

    async def one(question: Question) -> None:
        try:
            asked.replied(question, await asker.ask(question.record))
        except Unanswered as error:
            if error.useless:
                asked.useless(question, str(error))
            elif error.status is not None and error.status not in _NEVER:
                asked.refused(question, str(error))
            else:
                asked.no_reply(question, str(error))
            if error.status in _NEVER or not await answered_otherwise():
                stop.append(NobodyReplies(f"{step}: {error}. What has come so far is kept: fix it and start again"))
        except RowError as error:
            asked.unusable(question, error)
        except Exception as error:  # a full disk, or a fault of ours
            stop.append(error)
        finally:
            slots.release()

    try:
        for number, record in enumerate(records):
            question = asked.question(record)
            if question is None:
                if number % 100 == 0:
                    await asyncio.sleep(0)  # the calls in flight must not wait until all known ones are read
                continue
            await slots.acquire()
            if stop:
                break
            tasks.add(task := asyncio.create_task(one(question)))
            task.add_done_callback(tasks.discard)
        if stop:
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await asker.aclose()
    if stop:
        raise stop[0]
