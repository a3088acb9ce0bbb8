# SPDX-License-Identifier: Apache-2.0
"""Frees shared memory however a run ends.

Python's resource tracker unlinks the segments in `/dev/shm` of processes that died. It is a child of the process that
made the first segment, in the same process group, and Ray kills both together; a vLLM server then leaves its two
message queues behind, 400 MB. A tracker in its own session lives a moment longer and unlinks them.
"""

import os
import subprocess
from multiprocessing import resource_tracker, spawn
from typing import Any

# The first process ends at once so that the tracker is an orphan, because Ray also kills a worker's children.
_PROGRAM = "import os; os.fork() and os._exit(0); from multiprocessing.resource_tracker import main; main({fd})"


def start() -> None:
    """Start a resource tracker for this process and its children that signals to them do not reach. Idempotent.

    Call it before this process makes its first segment, because a process keeps its tracker.
    """
    tracker: Any = resource_tracker._resource_tracker
    if tracker._fd is not None:  # started already, or inherited from the process that spawned this one
        return
    reading, writing = os.pipe()
    try:
        command = [spawn.get_executable(), "-I", "-S", "-c", _PROGRAM.format(fd=reading)]
        nothing = subprocess.DEVNULL
        subprocess.run(
            command,
            check=True,
            pass_fds=[reading],
            start_new_session=True,
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
        )
    finally:
        os.close(reading)
    tracker._fd = writing  # as `spawn` passes a tracker to children; it ends when the last of them has ended
