# SPDX-License-Identifier: Apache-2.0
"""Stores servers' replies on disk, so that each is paid for once, even if the process is killed.

The file `<out>.replies.sqlite` is next to a step's output and is written while the step runs. It outlives the step:
running the step again, or with more records, asks only what is new. Delete the file to ask everything again.
"""

import json
import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_tools.records.outputs import place_of

logger = logging.getLogger(__name__)

KEYS = 3
"""Version of the keys. Raise it when the same record and settings get another key. Stored replies are then not found,
and every record is asked about again."""

_REMEDIES = (  # part of SQLite's message, remedy
    ("full", "free some space on its disk; stored replies are not lost"),
    ("disk I/O", "check its disk, and whether it is full; stored replies are not lost"),
    ("locked", "if another process runs this step, wait for it; else close the program that has the file open"),
    ("unable to open", "check that its folder exists and can be written"),
    ("readonly", "make it writable"),
)
_DAMAGED = "move the file away; its replies will be asked for again"


class Replies:
    """Replies by key, in an SQLite file. A context manager.

    Args:
        path: path of the file; it is created if it does not exist.

    Raises:
        ValueError: the file is something else, is damaged, cannot be written, or is in use by another program.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-journal")):
            if file.exists() and not file.is_file():
                raise ValueError(f"{file} is not a regular file, so replies cannot be kept in it: move it away")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=1.0, isolation_level=None)
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from None
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def beside(cls, folder: Path) -> "Replies":
        """Open the replies of the step that writes a folder."""
        place = place_of(folder)
        return cls(place.with_name(f"{place.name}.replies.sqlite"))

    def __enter__(self) -> "Replies":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, key: bytes) -> Any:
        """Return the reply stored under a key, as JSON; None if there is none, or one that is not JSON."""
        row = self._do("SELECT reply FROM replies WHERE key = ?", key)
        try:
            return None if row is None else json.loads(row[0])
        except (ValueError, TypeError, RecursionError):  # not written by us
            return None

    def put(self, key: bytes, reply: Mapping[str, Any]) -> None:
        """Store a reply; it survives a kill right after this call.

        Raises:
            ValueError: it cannot be written.
        """
        self._do("INSERT OR REPLACE INTO replies VALUES (?, ?)", key, json.dumps(reply))

    def _prepare(self) -> None:
        """Check that the file is ours before changing it, and take its lock."""
        self._connection.text_factory = bytes  # text that is not UTF-8 must not raise
        self._do("PRAGMA locking_mode=EXCLUSIVE")  # before anything is read, or WAL needs shared memory
        (others,) = self._do("SELECT count(*) FROM sqlite_master WHERE name != 'replies' AND name NOT LIKE 'sqlite_%'")
        if others:
            raise ValueError(f"{self.path} is another program's database: name another output, or move it away")
        self._do("PRAGMA journal_mode=WAL")
        self._do("PRAGMA synchronous=NORMAL")  # commits survive a kill without waiting for the disk
        self._do("CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID")
        self._do("INSERT OR IGNORE INTO replies (key, reply) VALUES (x'', '')")  # takes the lock
        self._note_version()

    def _note_version(self) -> None:
        (version,) = self._do("PRAGMA user_version")
        (kept,) = self._do("SELECT count(*) FROM replies WHERE key != x''")
        if kept and version < KEYS:
            logger.warning(
                "%s: its %d replies were stored by an earlier version under other keys: they are asked for again",
                self.path,
                kept,
            )
        if version < KEYS:
            self._do(f"PRAGMA user_version = {KEYS}")

    def _do(self, statement: str, *values: Any) -> Any:
        """Run a statement and return the first row of its result, if there is one."""
        try:
            return self._connection.execute(statement, values).fetchone()
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> ValueError:
        remedy = next((remedy for part, remedy in _REMEDIES if part in str(error)), _DAMAGED)
        return ValueError(f"{self.path}: replies cannot be kept here ({error}): {remedy}")
