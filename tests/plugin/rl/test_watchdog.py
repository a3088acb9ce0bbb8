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


def test_a_phase_that_outlasts_its_limit_ends_the_process_and_says_where():
    done = run("0.5", "with watchdog.phase('weight sync'):\n    time.sleep(30)")
    assert done.returncode == 70
    assert "the phase 'weight sync' made no progress" in done.stderr
    assert 'File "<string>", line 6' in done.stderr  # the stack of the thread that stands
    assert "stall_timeout_s" in done.stderr


def test_time_outside_a_phase_does_not_count():
    done = run("0.5", "with watchdog.phase('step'):\n    pass\ntime.sleep(1.5)")
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_an_inner_phase_gives_the_outer_one_a_new_start():
    body = """
with watchdog.phase("outer"):
    time.sleep(0.7)
    with watchdog.phase("inner"):
        time.sleep(0.7)
    time.sleep(0.7)"""
    done = run("1.2", body)
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_no_limit_watches_nothing():
    done = run("None", "with watchdog.phase('step'):\n    time.sleep(1)")
    assert (done.returncode, done.stdout) == (0, "alive\n")
