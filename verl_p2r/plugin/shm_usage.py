# SPDX-License-Identifier: Apache-2.0
"""How full shared memory is, and which of this user's segments no process uses any more."""

import os
import shutil
import time
from pathlib import Path

FOLDER = Path("/dev/shm")
PROCESSES = Path("/proc")
SETTLED = 60.0  # seconds; a younger segment may be about to be opened


def free_and_total(folder: Path = FOLDER) -> tuple[int, int]:
    """Free and total bytes of shared memory.

    Args:
        folder: where it is mounted.
    """
    usage = shutil.disk_usage(folder)
    return usage.free, usage.total


def leftovers(folder: Path = FOLDER, processes: Path = PROCESSES, settled: float = SETTLED) -> dict[Path, int]:
    """Find the segments of this user that no process maps or holds open.

    Processes of this user alone are looked at, and only those of this container.

    Args:
        folder: where shared memory is mounted.
        processes: the folder with one folder for each process.
        settled: age from which a segment counts, in seconds.

    Returns:
        Their sizes, in bytes.
    """
    segments = {}
    for path in folder.iterdir():
        try:
            status = path.lstat()
        except FileNotFoundError:  # removed since it was listed
            continue
        if path.is_file() and status.st_uid == os.getuid() and time.time() - status.st_mtime > settled:
            segments[str(path)] = status.st_blocks * 512
    for process in processes.iterdir():
        if segments and process.name.isdecimal():
            for name in _opened_by(process) & segments.keys():
                del segments[name]
    return {Path(name): size for name, size in sorted(segments.items())}


def _opened_by(process: Path) -> set[str]:
    """The files that a process maps or holds open; empty for a process that ended or belongs to another user."""
    names = set()
    try:
        names |= {line.split(maxsplit=5)[-1].strip() for line in (process / "maps").read_text().splitlines()}
        for descriptor in (process / "fd").iterdir():
            names.add(os.readlink(descriptor))
    except OSError:
        pass
    return names
