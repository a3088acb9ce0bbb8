# SPDX-License-Identifier: Apache-2.0
"""How many processors there are for this process."""

import os


def available_cpus() -> int:
    """The number of logical processors this process may run on, at least 1.

    Smaller than `os.cpu_count()` under a CPU affinity: `taskset`, `numactl`, a Slurm or container CPU set.
    """
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS
        return os.cpu_count() or 1
