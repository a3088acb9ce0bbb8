# SPDX-License-Identifier: Apache-2.0
"""The number of processors available to this process."""

import os


def available_cpus() -> int:
    """Return the number of logical processors that this process may use, at least 1.

    It is smaller than `os.cpu_count()` under a CPU affinity, for example by `taskset`, Slurm or a container.
    """
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS
        return os.cpu_count() or 1
