# SPDX-License-Identifier: Apache-2.0
"""Verdicts that were paid for once: asked for once at a time, kept in memory, and on disk when a file is given.

Only a Yes or a No is kept. The file is SQLite and may be shared by the processes of one node; put it on that node's
own disk. A file that is locked, broken, or cannot be written costs a warning and nothing else.
"""

import asyncio
import contextlib
import dataclasses
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from verl_p2r.chat.reply import encodable
from verl_p2r.judge import Verdict

logger = logging.getLogger(__name__)

_LOCK_WAIT_S = 0.2
_PAUSE_S = 30.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    key BLOB PRIMARY KEY, value INTEGER NOT NULL, reason TEXT NOT NULL, model TEXT NOT NULL, created REAL NOT NULL
) WITHOUT ROWID
"""


class VerdictCache:
    """Single-flight, an LRU in memory, and an optional SQLite file, in front of a judge that costs something.

    Args:
        size: verdicts kept in memory.
        path: the file; made with its folder when it is not there. None: memory only.
        model: written beside each verdict, for people who look into the file.
    """

    def __init__(self, size: int, path: str | Path | None = None, model: str = "") -> None:
        self._memory: LRUCache[bytes, Verdict] = LRUCache(size)
        self._flights: dict[tuple[asyncio.AbstractEventLoop, bytes], asyncio.Task[Verdict]] = {}
        self._disk = None if path is None else _Disk(Path(path).expanduser(), model)

    async def get(self, key: bytes, make: Callable[[], Awaitable[Verdict]]) -> Verdict:
        """Return the verdict kept under a key, or make it; callers that come meanwhile wait for the same one.

        A caller that is cancelled takes nothing from the others.

        Args:
            key: names the request and everything else that the verdict depends on.
            make: asks the judge; called at most once for all who wait.

        Returns:
            The verdict; its `source` is `cache` for all but the caller who made it.
        """
        kept = self._memory.get(key)
        if kept is not None:
            return kept
        flight = (asyncio.get_running_loop(), key)
        task = self._flights.get(flight)
        first = task is None
        if task is None:
            task = self._flights[flight] = asyncio.ensure_future(self._make(key, make))
            task.add_done_callback(lambda _task: self._flights.pop(flight, None))
        verdict = await asyncio.shield(task)
        return verdict if first or verdict.value is None else _cached(verdict)

    async def _make(self, key: bytes, make: Callable[[], Awaitable[Verdict]]) -> Verdict:
        kept = None if self._disk is None else await self._disk.read(key)
        if kept is not None:
            self._memory[key] = kept
            return kept
        verdict = await make()
        if verdict.value is not None:
            self._memory[key] = _cached(verdict)
            if self._disk is not None:
                self._disk.write(key, verdict)
        return verdict

    def close(self) -> None:
        """Write what is still to be written, and close the file."""
        if self._disk is not None:
            self._disk.close()


def _cached(verdict: Verdict) -> Verdict:
    return dataclasses.replace(verdict, source="cache", retries=0, prompt_tokens=0, completion_tokens=0)


class _Disk:
    """The file, used by one thread of its own, so that a lock held elsewhere never holds up the event loop."""

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="verdict-cache")
        self._connection: sqlite3.Connection | None = None
        self._paused_until: dict[str, float] = {}

    async def read(self, key: bytes) -> Verdict | None:
        """The kept verdict, or None when there is none or the file does not work."""
        statement = "SELECT value, reason FROM verdicts WHERE key = ?"
        row = await asyncio.get_running_loop().run_in_executor(self._thread, self._do, "read", statement, (key,))
        return Verdict(bool(row[0]), str(row[1]), "cache") if row is not None and row[0] in (0, 1) else None

    def write(self, key: bytes, verdict: Verdict) -> None:
        """Write behind: the caller does not wait."""
        # SQLite takes no lone surrogate, and what fails here would cost the verdicts after this one too.
        row = (key, int(verdict.value is True), encodable(verdict.reason), encodable(self.model), time.time())
        self._thread.submit(self._do, "write", "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        """Wait for the writes and close the file; using it again opens it again."""
        self._thread.submit(self._close).result()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _do(self, what: str, statement: str, values: tuple[Any, ...]) -> Any:
        """One statement, and the row that it finds; nothing after a failure, until the pause is over."""
        if time.monotonic() < self._paused_until.get(what, 0.0):
            return None  # a lock that stays must not be waited for each time
        try:
            return self._open().execute(statement, values).fetchone()
        except (sqlite3.Error, OSError, ValueError) as error:
            if what not in self._paused_until:
                logger.warning(
                    "cannot %s the verdict cache %s: %s. The run goes on, but verdicts may be paid for again: fix or "
                    "delete the file, or name another",
                    what,
                    self.path,
                    error,
                )
            self._paused_until[what] = time.monotonic() + _PAUSE_S
            return None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # No transaction of ours spans statements; with WAL readers do not wait for a writer.
            connection = sqlite3.connect(self.path, timeout=_LOCK_WAIT_S, isolation_level=None)
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            try:
                with contextlib.suppress(sqlite3.OperationalError):  # a file that cannot be written can still be read
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute("PRAGMA synchronous=NORMAL")
                    connection.execute(_SCHEMA)
                connection.execute("SELECT 1 FROM verdicts LIMIT 1")
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection
