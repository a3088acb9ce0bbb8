# SPDX-License-Identifier: Apache-2.0
"""Only the processors that this process may use are counted."""

import os
import subprocess
import sys

import pytest

from verl_p2r.cpus import available_cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_available_cpus_respect_affinity():
    code = (
        "import os; from verl_p2r.cpus import available_cpus; from data_tools.options import WORKERS\n"
        "print(available_cpus(), WORKERS)"
    )
    one = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{one}}})\n{code}"],
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [b"1", b"1"]
    assert available_cpus() == len(os.sched_getaffinity(0))


def test_available_cpus_fall_back_to_cpu_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert available_cpus() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cpus() == 1
