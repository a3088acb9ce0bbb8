# SPDX-License-Identifier: Apache-2.0
"""A step that asks a server or a judge about each record: many at a time, in two passes, each reply stored.

The first pass asks about the records that have no reply yet. The second pass reads all of them in order and writes the
output. So the output does not depend on the order of the replies, and a killed run continues where it was. A reply that
the step cannot use does not count, whether it has just come or was stored earlier.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from data_tools.records.files import Records
from data_tools.records.folders import whole_folder
from data_tools.records.left_out import RejectLog
from data_tools.steps.ledger import Apply, Pending, ReplyLedger, Shape
from data_tools.steps.replies import Replies
from data_tools.steps.run import OnRecord, StepReport, write_step
from verl_p2r.chat.client import Unanswered
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Record

SILENT = 20
"""Consecutive unanswered records (or `concurrency`, if larger) after which the server is checked."""


NEEDS_TRUST = "--trust-request-mm-kwargs"
"""Option that a server of vLLM 0.32 needs to accept the times of frames from a request; its refusal names it."""


class NobodyReplies(ValueError):
    """The server is down or refuses everything, so that continuing would reject all remaining records."""


class Asker(Protocol):
    """Asks about one record at a time.

    Attributes:
        concurrency: number of records in progress at once.
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
        """Ask a question that any working server answers. Called after many consecutive unanswered records.

        Raises:
            NobodyReplies: there is no answer.
            Unanswered: there is no answer.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@runtime_checkable
class BatchAsker(Protocol):
    """Takes all records at once and schedules the work itself.

    Attributes:
        fingerprint: every input except the record and its medium that determines a reply.
    """

    fingerprint: Mapping[str, Any]

    def ask_all(self, records: Iterable[Record], ledger: ReplyLedger) -> None:
        """Ask about the records that are pending in the ledger, and report the replies to it.

        Raises:
            NobodyReplies: continuing is useless.
        """
        ...


def asking_step(
    step: str,
    files: Sequence[Path],
    folder: Path,
    asker: Asker | BatchAsker,
    apply: Apply,
    shape: Shape,
    *,
    max_reject_share: float,
    root: Path | None = None,
    on_record: OnRecord = lambda kept: None,
) -> StepReport:
    """Ask about the records of some files.

    Args:
        step: name of the step.
        files: files of records, see `records.files.files_of`.
        folder: output folder; replies are stored next to it, see `replies`.
        asker: asks the server or the judge.
        apply: makes an outcome of a record and a usable reply.
        shape: fields and types of a usable reply.
        max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        root: folder that the records' paths are relative to. A record is then asked about again when the size or the
            modification time of its medium changes. None: replies do not depend on media.
        on_record: called once a record is settled.

    Raises:
        NobodyReplies: replies so far are stored; start again when the server is back.
        ValueError: the folder or the store of replies cannot be used.
    """
    # The folder is opened first, so that an unusable one is found before anything is paid for.
    with whole_folder(folder, files) as partial, Replies.beside(folder) as replies:
        records = Records(files, RejectLog(Path(os.devnull)))
        ledger = ReplyLedger(asker.fingerprint, apply, shape, replies, root, on_record)
        if isinstance(asker, BatchAsker):
            asker.ask_all(records, ledger)
        else:
            asyncio.run(_FirstPass(step, asker, ledger).run(records))
        return write_step(
            step, files, partial, ledger.transform, settings=asker.fingerprint, max_reject_share=max_reject_share
        )


class _FirstPass:
    """Asks about the pending records, `asker.concurrency` at a time."""

    def __init__(self, step: str, asker: Asker, ledger: ReplyLedger) -> None:
        self.step, self.asker, self.ledger = step, asker, ledger
        self._slots = asyncio.Semaphore(asker.concurrency)
        self._stop: list[Exception] = []

    async def run(self, records: Iterable[Record]) -> None:
        """Ask about the records.

        Raises:
            NobodyReplies: the server is down or refuses everything.
        """
        tasks: set[asyncio.Task[None]] = set()
        try:
            for number, record in enumerate(records):
                pending = self.ledger.pending(record)
                if pending is None:
                    if number % 100 == 0:
                        await asyncio.sleep(0)  # lets the calls in flight proceed while known records are read
                    continue
                await self._slots.acquire()
                if self._stop:
                    break
                tasks.add(task := asyncio.create_task(self._one(pending)))
                task.add_done_callback(tasks.discard)
            if self._stop:
                for task in tasks:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await self.asker.aclose()
        if self._stop:
            raise self._stop[0]

    async def _one(self, pending: Pending) -> None:
        try:
            await self._ask(pending)
        except Exception as error:  # a full disk, or a bug
            self._stop.append(error)
        finally:
            self._slots.release()

    async def _ask(self, pending: Pending) -> None:
        try:
            self.ledger.replied(pending, await self.asker.ask(pending.record))
        except Unanswered as error:
            self._note(pending, error)
            if _refuses_all(error) or not await self._answers_others():
                why = f"{self.step}: {error}. What has come so far is kept: fix it and start again"
                self._stop.append(NobodyReplies(why))
        except RowError as error:
            self.ledger.unusable(pending, error)

    def _note(self, pending: Pending, error: Unanswered) -> None:
        if error.useless:
            self.ledger.useless(pending, str(error))
        elif error.status is None or _refuses_all(error):
            self.ledger.no_reply(pending, str(error))
        else:
            self.ledger.refused(pending, str(error))

    async def _answers_others(self) -> bool:
        """Return False if the server answers nothing any more; it is checked after a long silence."""
        if self.ledger.silent < max(SILENT, self.asker.concurrency):
            return True
        self.ledger.silent = 0  # one check at a time
        try:
            await self.asker.check()
        except (NobodyReplies, Unanswered):
            return False
        return True


def _refuses_all(error: Unanswered) -> bool:
    """Return whether every record with a medium would be refused like this one.

    These are redirects (a wrong address), 401, 403 and 404 (a wrong key or model), 407 (a proxy wants a login), and a
    400 that names an option which the server lacks.
    """
    status = error.status
    if status == 400:
        return NEEDS_TRUST in str(error)
    return status is not None and (300 <= status < 400 or status in (401, 403, 404, 407))
