# SPDX-License-Identifier: Apache-2.0
"""Which records have a reply, and why the others have none."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.steps.replies import KEYS, Replies
from data_tools.steps.run import OnRecord, Outcome
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Record

Shape = Mapping[str, type]
"""The fields of a reply and their types."""

Apply = Callable[[Record, dict[str, Any]], Outcome]
"""Turns a record and a usable reply to it into the record's outcome."""

_CHANGED = RowError(
    "", "no reply", "it has no reply in its present state: it or its medium changed while the step ran: start again"
)


class Pending(NamedTuple):
    """A record without a reply, and the key under which its reply will be stored.

    The key is computed before the record is asked about. If the medium changes in the meantime, it is unknown which of
    its two versions the reply is about, and the second pass must not find the reply.
    """

    record: Record
    key: bytes


class ReplyLedger:
    """Stores replies as they come, and notes why a record has none.

    A reply is stored under the record's `identity`, its response, the state of its medium, and the fingerprint of
    whoever is asked. If any of them changes, the record is asked about again.

    Args:
        fingerprint: every input except the record and its medium that determines a reply.
        apply: makes an outcome of a record and its reply.
        shape: fields and types of a usable reply.
        replies: the store.
        root: folder that the records' paths are relative to; None if replies do not depend on media.
        on_record: called once a record is settled.

    Attributes:
        silent: number of consecutive records without a reply.
    """

    def __init__(
        self,
        fingerprint: Mapping[str, Any],
        apply: Apply,
        shape: Shape,
        replies: Replies,
        root: Path | None = None,
        on_record: OnRecord = lambda kept: None,
    ) -> None:
        self._fingerprint = hashlib.sha256(json.dumps([KEYS, fingerprint], sort_keys=True, default=str).encode())
        self._apply, self._shape, self._replies, self._on_record = apply, shape, replies, on_record
        self._root = None if root is None else str(root)
        self._failed: dict[bytes, RowError] = {}
        self.silent = 0

    def pending(self, record: Record) -> Pending | None:
        """Return the record with its key, or None if it has a usable reply already."""
        key = self._key(record)
        reply = self._stored(key)
        if reply is None:
            return Pending(record, key)
        self._on_record(self._apply(record, reply)[1] is None)
        return None

    def replied(self, pending: Pending, reply: dict[str, Any]) -> None:
        """Store a reply."""
        own = usable(reply, self._shape)
        if own is None:
            self.useless(pending, f"the reply is not valid text, or lacks one of the fields {', '.join(self._shape)}")
            return
        self.silent = 0
        self._replies.put(pending.key, own)
        self._on_record(self._apply(pending.record, own)[1] is None)

    def no_reply(self, pending: Pending, why: str) -> None:
        """Note that no reply came, this time."""
        self.silent += 1
        self.unusable(pending, RowError("", "no reply", f"{why}: start the step again to ask once more"))

    def useless(self, pending: Pending, why: str) -> None:
        """Note that replies came, but none that can be used."""
        self.silent = 0
        self.unusable(pending, RowError("", "useless reply", f"{why}: start the step again to ask once more"))

    def refused(self, pending: Pending, why: str) -> None:
        """Note that this record was refused."""
        self.silent = 0
        self.unusable(pending, RowError("", "refused", why))

    def unusable(self, pending: Pending, why: RowError) -> None:
        """Note that the record cannot be asked about."""
        self._failed[pending.key] = why
        self._on_record(False)

    def transform(self, records: Iterable[Record]) -> Iterator[Outcome]:
        """Yield the outcome of each record, in the second pass; see `run.Transform`."""
        for record in records:
            key = self._key(record)
            reply = self._stored(key)
            if reply is None:
                yield record, self._failed.get(key) or _CHANGED
            else:
                yield self._apply(record, reply)

    def _stored(self, key: bytes) -> dict[str, Any] | None:
        return usable(self._replies.get(key), self._shape)

    def _key(self, record: Record) -> bytes:
        digest = self._fingerprint.copy()
        digest.update(record.identity)
        state = None if self._root is None else _state(os.path.join(self._root, record.path))
        digest.update(json.dumps((record.observation, record.process, record.output, state)).encode())
        return digest.digest()


def usable(reply: Any, shape: Shape) -> dict[str, Any] | None:
    """Return the fields of a reply that a step reads; None if one is missing, of another type, or not valid Unicode.

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


def _state(path: str) -> tuple[int, int] | None:
    """Return size and modification time of a file, which change with its content; None if there is no file."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # ValueError: no file can have this name; reading the medium reports it
        return None
    return stat.st_size, stat.st_mtime_ns
