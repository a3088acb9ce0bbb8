# SPDX-License-Identifier: Apache-2.0
"""Killing processes as a power cut would, except for what cleans up after them."""

import contextlib

import psutil


def family(pid: int) -> list[psutil.Process]:
    """A process and its descendants, without Python's resource trackers.

    A tracker frees the shared memory of processes that died, and then ends. A test that kills it as well leaves the
    segments in `/dev/shm` until the machine restarts.
    """
    process = psutil.Process(pid)
    return [process, *(child for child in process.children(recursive=True) if not is_tracker(child))]


def is_tracker(process: psutil.Process) -> bool:
    try:
        return "resource_tracker" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return False


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
