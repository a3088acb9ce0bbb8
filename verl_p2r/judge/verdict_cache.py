# SPDX-License-Identifier: Apache-2.0
"""Caches verdicts in memory and optionally on disk; concurrent requests for one key share one call.

Only a Yes or a No is kept. The file is an SQLite database that the processes of one node may share; keep it on a local
disk. A file that is locked, damaged or read-only causes a warning, and the run goes on without it.
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
from verl_p2r.judge.protocol import Verdict

logger = logging.getLogger(__name__)

_LOCK_WAIT_S = 0.2
_PAUSE_S = 30.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    key BLOB PRIMARY KEY, value INTEGER NOT NULL, reason TEXT NOT NULL, model TEXT NOT NULL, created REAL NOT NULL
) WITHOUT ROWID
"""
_ADD_PROBABILITY = "ALTER TABLE verdicts ADD COLUMN probability REAL"  # files of earlier versions lack it


class VerdictCache:
    """An LRU cache with an optional SQLite file; concurrent requests for one key share one call.

    Args:
        size: The most verdicts kept in memory.
        path: The file; it and its folder are created if missing. None: memory only.
        model: The judge's model, stored with each verdict for readers of the file.
    """

    def __init__(self, size: int, path: str | Path | None = None, model: str = "") -> None:
        self._memory: LRUCache[bytes, Verdict] = LRUCache(size)
        self._flights: dict[tuple[asyncio.AbstractEventLoop, bytes], asyncio.Task[Verdict]] = {}
        self._disk = None if path is None else _Disk(Path(path).expanduser(), model)

    async def get(self, key: bytes, make: Callable[[], Awaitable[Verdict]]) -> Verdict:
        """Return the cached verdict of a key, or make it.

        Callers that arrive while it is being made wait for the same verdict. Cancelling one caller does not affect the
        others.

        Args:
            key: Identifies the request and everything else that determines the verdict.
            make: Asks the judge; called at most once for all waiting callers.

        Returns:
            The verdict; its `source` is `cache` except for the caller that made it.
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
        """Finish pending writes and close the file."""
        if self._disk is not None:
            self._disk.close()


def _cached(verdict: Verdict) -> Verdict:
    return dataclasses.replace(verdict, source="cache", retries=0, prompt_tokens=0, completion_tokens=0)


class _Disk:
    """The SQLite file, accessed from its own thread so that another process's lock cannot block the event loop."""

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="verdict-cache")
        self._connection: sqlite3.Connection | None = None
        self._paused_until: dict[str, float] = {}

    async def read(self, key: bytes) -> Verdict | None:
        """Return the stored verdict, or None if there is none or the file cannot be read."""
        statement = "SELECT value, reason, probability FROM verdicts WHERE key = ?"
        row = await asyncio.get_running_loop().run_in_executor(self._thread, self._do, "read", statement, (key,))
        if row is None or row[0] not in (0, 1):
            return None
        probability = row[2] if isinstance(row[2], float) and 0 <= row[2] <= 1 else None
        return Verdict(bool(row[0]), str(row[1]), "cache", probability=probability)

    def write(self, key: bytes, verdict: Verdict) -> None:
        """Store a verdict in the background."""
        # SQLite rejects lone surrogates, and a failed write would pause the writes after it too.
        texts = encodable(verdict.reason), encodable(self.model)
        row = (key, int(verdict.value is True), *texts, time.time(), verdict.probability)
        self._thread.submit(self._do, "write", "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        """Wait for pending writes and close the file; the next use reopens it."""
        self._thread.submit(self._close).result()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _do(self, what: str, statement: str, values: tuple[Any, ...]) -> Any:
        """Run one statement and return its first row; after a failure, return None until the pause is over."""
        if time.monotonic() < self._paused_until.get(what, 0.0):
            return None  # do not wait for a permanent lock on every call
        try:
            return self._open().execute(statement, values).fetchone()
        except (sqlite3.Error, OSError, ValueError) as error:
            if what not in self._paused_until:
                logger.warning(
                    "cannot %s the verdict cache %s: %s. The run goes on, but the judge may be asked again for known "
                    "verdicts: fix or delete the file, or choose another one",
                    what,
                    self.path,
                    error,
                )
            self._paused_until[what] = time.monotonic() + _PAUSE_S
            return None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # No transaction spans several statements; with WAL, readers do not wait for a writer.
            connection = sqlite3.connect(self.path, timeout=_LOCK_WAIT_S, isolation_level=None)
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            try:
                with contextlib.suppress(sqlite3.OperationalError):  # a read-only file can still be read
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute("PRAGMA synchronous=NORMAL")
                    connection.execute(_SCHEMA)
                    connection.execute(_ADD_PROBABILITY)  # fails if the column exists
                connection.execute("SELECT probability FROM verdicts LIMIT 1")
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection
