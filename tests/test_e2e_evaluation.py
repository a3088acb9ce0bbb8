# SPDX-License-Identifier: Apache-2.0
"""The seven benchmarks' formats with made items, against a real vLLM server with a tiny model: prepare to report."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import benchmark_files
import pytest
from paths import ROOT
from vllm_server import vllm_server

from data_tools.evaluate.adapters import ADAPTERS
from data_tools.evaluate.results import read_run
from verl_p2r.evaluation import BENCHMARKS, score
from verl_p2r.plugin.cpu.platform_env import ROLLOUT_ENV

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("no_segments_left")]

LIMIT = 240  # seconds, for the server to come up or a command to end
ENV = {**os.environ, **ROLLOUT_ENV, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory) -> Iterator[str]:
    """The URL of a vLLM server that knows a tiny model of random weights by the name `tiny`."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with vllm_server(tiny_model, "tiny", log, ENV, LIMIT, length=4096, rows=8) as url:
        yield url


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "data_tools.evaluate", *map(str, arguments)]


def done(*arguments: object) -> str:
    ended = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=LIMIT, cwd=ROOT, env=ENV, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def prepared(folder: Path) -> list[Path]:
    for name in BENCHMARKS:
        counts = dict.fromkeys(list(ADAPTERS[name].counts)[:4], 1)
        videos = benchmark_files.MAKERS[name](folder / name, {**dict.fromkeys(ADAPTERS[name].counts, 0), **counts})
        benchmark_files.write_videos(folder / name, videos)
        done("prepare", name, folder / name, "--media-root", folder, "--out", folder / "items" / name, "--partial")
    return [folder / "items" / name for name in BENCHMARKS]


def test_benchmarks_from_prepare_to_report_with_a_killed_run(tmp_path, server):
    items = prepared(tmp_path)
    run = ["run", *items, "--media-root", tmp_path, "--model", "tiny", "--base-url", server]
    run += ["--max-tokens", 24, "--concurrency", 2, "--out", tmp_path / "run"]
    killed = subprocess.Popen(command(*run), cwd=ROOT, env=ENV)
    kept = tmp_path / "run.replies.sqlite"
    start = time.monotonic()
    while not kept.exists() and killed.poll() is None and time.monotonic() - start < LIMIT:
        time.sleep(0.2)
    time.sleep(2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    print(done(*run))
    results = read_run(tmp_path / "run")
    figures = score(results.records, "video_r1")
    assert set(figures) == set(BENCHMARKS)
    assert not {name: row["lost"] for name, row in figures.items() if row["lost"]}
    assert sum(row["n"] for row in figures.values()) == len(results.records) > 14
    assert all(record["completion_tokens"] for record in results.records if record["response"])
    print(done("score", tmp_path / "run"))
    done("report", tmp_path / "run", "--media-root", tmp_path, "--out", tmp_path / "report.html")
    assert "VideoP2R SFT + PA-GRPO, 7B" in (tmp_path / "report.html").read_text()
