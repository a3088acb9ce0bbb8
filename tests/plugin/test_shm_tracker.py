# SPDX-License-Identifier: Apache-2.0
"""Shared memory of a family of processes that Ray kills: gone, whoever is killed first, and however."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest
from paths import ROOT

# As verl's vLLM server: it spawns an engine, which makes a segment; both say its name, and wait to be killed.
FAMILY = """
import multiprocessing as mp, time
from multiprocessing.shared_memory import SharedMemory

def engine(pipe):
    pipe.send(SharedMemory(create=True, size=100).name)
    time.sleep(600)

if __name__ == "__main__":
    if {ours}:
        from verl_p2r.plugin import shm_tracker
        shm_tracker.start()
        shm_tracker.start()
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=engine, args=[there]).start()
    own = SharedMemory(create=True, size=100)
    print(own.name, here.recv(), flush=True)
    time.sleep(600)
"""


def kill_as_a_worker_that_exits(process: subprocess.Popen) -> None:
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.kill()


def kill_as_the_raylet(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def exists(name: str) -> bool:
    return Path("/dev/shm", name).exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory has no folder here")
@pytest.mark.parametrize("kill", [kill_as_a_worker_that_exits, kill_as_the_raylet])
@pytest.mark.parametrize("ours", [True, False])
def test_shm_segments_of_killed_processes_are_unlinked(tmp_path, ours, kill):
    script = tmp_path / "family.py"
    script.write_text(FAMILY.format(ours=ours))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        names = process.stdout.readline().split()
        assert all(map(exists, names))
        kill(process)
    finally:
        kill_as_the_raylet(process)
        process.wait()
    for _ in range(200 if ours else 0):
        if any(map(exists, names)):
            time.sleep(0.05)
    left = [name for name in names if exists(name)]
    for name in left:
        SharedMemory(name).unlink()
    assert bool(left) is not ours, "Python's own tracker would do: this module can go"
