# SPDX-License-Identifier: Apache-2.0
"""One process at a time writes an output. The operating system holds the lock, so it ends with its process.

.<name>.lock    next to the output while a process writes it: who that is. A killed process leaves the file, which locks
                nothing; the next run takes it over.

`flock` reaches across the machines that share an NFS folder only where the mount supports locks (NFSv4, or NFSv3 with
lockd). With `nolock` or `local_lock=flock` it holds within one machine. Where a file system has no locks at all, a
warning says so and the step runs without one. `filelock` is not used because it does not say who holds a lock.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from data_tools.records.outputs import naming, place_of

logger = logging.getLogger(__name__)

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_READ = 4096  # bytes of a lock file
_COMMAND = 200  # characters shown of a command
_PATIENCE, _PAUSE_S = 10, 0.05  # looks for the holder's name, which it writes right after it has taken the lock


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep other processes from writing an output.

    Args:
        output: the file or folder; the folder that contains it is created.

    Raises:
        ValueError: another process is writing it; the message names that process.
        OSError: the lock file cannot be written.
    """
    place = place_of(output)
    place.parent.mkdir(parents=True, exist_ok=True)
    path = place.with_name(f".{place.name}.lock")
    lock = _acquire(path, output)
    try:
        with naming(path):
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(_this_process()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # before the lock ends, so that no other process's file is removed
        os.close(lock)


def _acquire(path: Path, output: Path) -> int:
    """Open and lock the lock file, and return its descriptor."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            if _lock(lock, output) and not _is_open(lock, path):
                os.close(lock)  # its holder removed it between our `open` and `flock`
                continue
            return lock
        except BaseException:
            os.close(lock)
            raise


def _lock(lock: int, output: Path) -> bool:
    """Lock an open file; return False where the file system has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise ValueError(
                f"{output} is being written by {_holder(lock)}: wait until it ends, or name another output"
            ) from None
        if error.errno in _NO_LOCKS:
            logger.warning("%s: its file system has no locks (%s): start no second run on it", output, error.strerror)
            return False
        raise
    return True


def _is_open(lock: int, path: Path) -> bool:
    """Whether a path still names the file that is open."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock), os.stat(path, follow_symlinks=False))
    return False


def _this_process() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": shlex.join(sys.argv)[:_COMMAND],
    }


def _holder(lock: int) -> str:
    """The process that holds a lock, for a message."""
    for _ in range(_PATIENCE):
        with contextlib.suppress(ValueError, TypeError, LookupError):
            named = json.loads(os.pread(lock, _READ, 0))
            return f"process {named['pid']} on {named['host']} since {named['since']} ({named['command']})"
        time.sleep(_PAUSE_S)
    return "another process"
