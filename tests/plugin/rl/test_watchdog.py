# SPDX-License-Identifier: Apache-2.0
"""The watchdog, in separate processes: it ends the process it watches."""

import subprocess
import sys

SCRIPT = """
import time
from verl_p2r.plugin.rl.watchdog import Watchdog
watchdog = Watchdog({limit})
{body}
print("alive")
"""


def run(limit: str, body: str) -> subprocess.CompletedProcess:
    code = SCRIPT.format(limit=limit, body=body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_watchdog_ends_process_and_names_phase_that_exceeds_limit():
    done = run("0.5", "with watchdog.phase('weight sync'):\n    time.sleep(30)")
    assert done.returncode == 70
    assert "the phase 'weight sync' made no progress" in done.stderr
    assert 'File "<string>", line 6' in done.stderr  # the stack of the thread that stands
    assert "stall_timeout_s" in done.stderr


def test_watchdog_ignores_time_outside_phases():
    done = run("0.5", "with watchdog.phase('step'):\n    pass\ntime.sleep(1.5)")
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_inner_phase_restarts_limit_of_outer_phase():
    body = """
with watchdog.phase("outer"):
    time.sleep(0.7)
    with watchdog.phase("inner"):
        time.sleep(0.7)
    time.sleep(0.7)"""
    done = run("1.2", body)
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_watchdog_without_limit_never_ends_process():
    done = run("None", "with watchdog.phase('step'):\n    time.sleep(1)")
    assert (done.returncode, done.stdout) == (0, "alive\n")
