# SPDX-License-Identifier: Apache-2.0
"""Checks that the media of records exist and decode: each file or part of a file once, many at a time."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from data_tools.records.left_out import RejectLog, rejected
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Medium, Record
from verl_p2r.media.local_files import is_local_file

PATCH_SIZE = 14  # that of the paper's models; it changes sizes, not whether a file decodes
AHEAD = 8  # records read ahead for each worker


class MediaCheck:
    """Rejects the records whose media cannot be used.

    Args:
        root: folder that the records' paths are relative to.
        rejects: log of rejected records.
        workers: files decoded at a time; each holds the frames that training samples.

    Attributes:
        files: number of media decoded.
        bad: number of media that failed.
    """

    def __init__(self, root: Path, rejects: RejectLog, workers: int) -> None:
        self.root, self.rejects, self.workers = root, rejects, workers
        self.files, self.bad = 0, 0
        self._faults: dict[Medium, RowError | None] = {}
        self._running: dict[Medium, Future[RowError | None]] = {}

    def __call__(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records whose media decode, in order."""
        ahead: deque[Record] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for record in records:
                medium = record.medium
                if medium not in self._faults and medium not in self._running:
                    self._running[medium] = pool.submit(fault_of, medium, self.root)
                ahead.append(record)
                if len(ahead) >= AHEAD * self.workers:
                    yield from self._passed(ahead.popleft())
            for record in ahead:
                yield from self._passed(record)
        finally:
            pool.shutdown(cancel_futures=True)  # after a stop, the media read ahead are not decoded

    def _passed(self, record: Record) -> Iterator[Record]:
        medium = record.medium
        running = self._running.pop(medium, None)
        if running is not None:
            self._faults[medium] = fault = running.result()
            self.files += 1
            self.bad += fault is not None
        fault = self._faults[medium]
        if fault is None:
            yield record
        else:
            self.rejects.add(rejected(record, fault))


def fault_of(medium: Medium, root: Path) -> RowError | None:
    """Return why a medium cannot be trained on; None if it can.

    Args:
        medium: the medium; of a video, the frames that training samples are decoded.
        root: folder that its path is relative to.
    """
    from verl_p2r.media.decode import fetch_video  # imports torch, 0.2 GB
    from verl_p2r.media.images import read_image
    from verl_p2r.media.rules import TRAINING

    path = root / medium.path
    try:
        element = medium.element(root)
        if medium.kind == "image":
            read_image(element)
        else:
            fetch_video(TRAINING.fill(element), PATCH_SIZE)
    except RowError as error:
        return error
    except Exception as error:  # decoders may raise anything on damaged files; report it as this file's error
        return medium_error(path, error)
    return None


def medium_error(path: Path, error: Exception) -> RowError:
    """Make the error of a record whose medium could not be read."""
    from verl_p2r.media.plan import MediaError, RulesError

    if isinstance(error, RulesError):
        return RowError("media", "sampling rules", f"field media: {error}: correct it, or drop the record")
    missing = not is_local_file(path)
    what = str(error) if isinstance(error, MediaError) else f"{path}: {type(error).__name__}: {error}"
    remedy = "unpack it there, or set the media root" if missing else "fetch it again, or drop the record"
    return RowError("path", "missing file" if missing else "unreadable file", f"field path: {what}: {remedy}")
