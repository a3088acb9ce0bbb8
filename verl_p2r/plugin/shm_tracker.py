# SPDX-License-Identifier: Apache-2.0
"""Shared memory that is freed however a run ends.

Python's resource tracker unlinks the segments in `/dev/shm` of processes that died. It is a child of the process that
made the first segment, in its process group, and Ray kills both together: a vLLM server then leaves its two message
queues behind, 400 MB. A tracker in a session of its own survives them by a moment, and unlinks what they left.
"""

import os
import subprocess
from multiprocessing import resource_tracker, spawn

# The first process ends at once, so that the tracker is nobody's child: Ray kills a worker's children, too.
_PROGRAM = "import os; os.fork() and os._exit(0); from multiprocessing.resource_tracker import main; main({fd})"


def start() -> None:
    """Give this process, and those that it will spawn, a resource tracker that no signal to them reaches. Idempotent.

    Call it before this process makes its first segment: a process keeps the tracker that it has.
    """
    tracker = resource_tracker._resource_tracker
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
    tracker._fd = writing  # as `spawn` hands a tracker to its children; it ends when the last of them is gone
