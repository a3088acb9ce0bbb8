# SPDX-License-Identifier: Apache-2.0
"""What servers have replied, kept on disk: each reply is paid for once, whatever happens to the process.

<out>.replies.sqlite stands beside a step's output and is written while the step runs. It outlives the step, so that
running it again, or with more records, asks only what is new; delete it to ask everything anew.
"""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Replies:
    """Replies by key, in an SQLite file. A context manager.

    Args:
        path: the file.

    Raises:
        ValueError: the file is something else, cannot be written, or is in use by another process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=1.0, isolation_level=None)
            self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # two runs of one step would pay twice
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")  # commits survive a kill without waiting for the disk
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID"
            )
            self._connection.execute("INSERT OR IGNORE INTO replies VALUES (x'', '')")  # takes the lock
        except (sqlite3.Error, OSError) as error:
            raise ValueError(
                f"{path}: cannot be used to keep replies ({error}): if another process runs this step, wait for it; "
                "else move the file away"
            ) from None

    @classmethod
    def beside(cls, folder: Path) -> "Replies":
        """Those of the step that writes a folder."""
        folder = folder.absolute()
        return cls(folder.with_name(f"{folder.name}.replies.sqlite"))

    def __enter__(self) -> "Replies":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, key: bytes) -> dict[str, Any] | None:
        """The reply kept under a key, if there is one."""
        row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: bytes, reply: Mapping[str, Any]) -> None:
        """Keep a reply; a kill right after does not lose it."""
        self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply)))
