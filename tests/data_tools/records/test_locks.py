# SPDX-License-Identifier: Apache-2.0
"""One run at a time writes an output, and a killed run does not block the next one."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT
from release_files import lines_of, release_record, write_lines
from typer.testing import CliRunner

from data_tools.cli import app
from data_tools.records.folders import whole_folder
from data_tools.records.locks import locked
from data_tools.steps.verify import verify

HOLD = (
    "import sys; from pathlib import Path\n"
    "from data_tools.records.locks import locked\n"
    "with locked(Path(sys.argv[1])):\n    "
)


@contextlib.contextmanager
def held_elsewhere(output: Path):
    """Another process that holds an output's lock."""
    code = f"{HOLD}print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code, str(output)], cwd=ROOT, **pipes)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process.pid
    finally:
        process.communicate()
        assert process.returncode == 0


def commands(tmp_path: Path) -> dict[str, tuple[list[str], Path]]:
    """Each command that writes, and what it locks; the judge is `facts`, which needs no server."""
    file = str(write_lines(tmp_path / "in.jsonl", [release_record()]))
    release = tmp_path / "release"
    release.mkdir()
    (release / "VideoP2R-162k_sft.part1of1.json.gz").write_bytes((tmp_path / "in.jsonl").read_bytes())
    (tmp_path / "build.yaml").write_text(
        f"{{inputs: [{file}], out: {tmp_path / 'out'}, generate: {{model: m, base_urls: ['http://localhost:9/v1']}}, "
        "judge: {name: facts}}"
    )
    out = tmp_path / "out"
    to = ["--out", str(out)]
    return {
        "import-release": (["import-release", str(release), *to], out),
        "generate": (["generate", file, *to, "--model", "m", "--base-url", "http://localhost:9/v1"], out),
        "verify": (["verify", file, *to], out),
        "judge": (["judge", file, *to, "--judge", "facts"], out),
        "decontaminate": (["decontaminate", file, *to, "--benchmark", file], out),
        "to-parquet": (["to-parquet", file, *to, "--kind", "rl"], out),
        "build": (["build", str(tmp_path / "build.yaml")], out),
        "view": (["view", file, "--out", str(out)], out),
        "stats": (["stats", file, "--png", str(out)], out / "plots"),
    }


NAMES = ("import-release", "generate", "verify", "judge", "decontaminate", "to-parquet", "build", "view", "stats")


@pytest.mark.parametrize("name", NAMES)
def test_second_run_on_same_output_is_refused_and_names_writer(tmp_path, name):
    command, output = commands(tmp_path)[name]
    with held_elsewhere(output) as pid:
        before = sorted(tmp_path.rglob("*"))
        done = CliRunner().invoke(app, command)
        assert sorted(tmp_path.rglob("*")) == before
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith(str(output))]
    assert re.search(rf"is being written by process {pid} on \S+ since 20\d\d-\S+ \S+ \(-c {output}\): wait", line)
    assert not list(tmp_path.rglob(".*.lock"))


@pytest.mark.parametrize("other", ["below/../out", "link/out", "out/"])
def test_folder_has_one_lock_for_every_spelling_of_its_path(tmp_path, other):
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    with locked(tmp_path / "out"), pytest.raises(ValueError, match=rf"process {os.getpid()} on"):
        locked(tmp_path / other).__enter__()


@pytest.mark.parametrize("left", [b"", b"{", b'{"pid": 1}', b"[]", b"\xff\xfe", b"x" * 100_000])
def test_stale_lock_file_does_not_block(tmp_path, left):
    (tmp_path / ".out.lock").write_bytes(left)
    with locked(tmp_path / "out"):
        assert json.loads((tmp_path / ".out.lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_lock_without_owner_data_is_reported_as_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr("data_tools.records.locks._PAUSE_S", 0.0)
    with (tmp_path / ".out.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is being written by another process: wait"):
            locked(tmp_path / "out").__enter__()


def test_lock_of_killed_process_does_not_block(tmp_path):
    code = f"{HOLD}import os; os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    with whole_folder(tmp_path / "out") as partial:
        (partial / "manifest.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_lock_file_removed_before_flock_is_not_used(tmp_path, monkeypatch):
    """Its holder removes it between our `open` and our `flock`; the next one must lock the new file."""
    flock, path = fcntl.flock, tmp_path / ".out.lock"

    def slow(file, how):
        if path.exists() and not path.stat().st_size:
            monkeypatch.setattr(fcntl, "flock", flock)
            path.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with locked(tmp_path / "out"), pytest.raises(ValueError, match="is being written by process"):
        locked(tmp_path / "out").__enter__()


def test_step_runs_with_warning_when_file_system_has_no_locks(tmp_path, monkeypatch, caplog):
    def none(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path / "out"):
        pass
    assert "its file system has no locks" in caplog.text
    assert not list(tmp_path.iterdir())


def _verify(path: str, out: str) -> None:
    with contextlib.suppress(ValueError):  # the other one writes
        verify([Path(path)], Path(out))


def whole_content(out: Path) -> str:
    """Of which input a folder is; it must be whole and say so."""
    manifest = json.loads((out / "manifest.json").read_text())
    ids = [line["problem_id"] for line in lines_of(out / "part-00000.jsonl")]
    name = Path(manifest["inputs"][0]["file"]).stem
    assert ids == [f"{name}{i}" for i in range(len(ids))]
    assert manifest["written"] == len(ids) == 60
    return name


@pytest.mark.slow
def test_two_repeatedly_killed_runs_leave_one_complete_output(tmp_path):
    files = {
        name: write_lines(tmp_path / f"{name}.jsonl", [release_record(f"{name}{i}") for i in range(60)])
        for name in "xy"
    }
    out, rng, fork = tmp_path / "out", random.Random(0), multiprocessing.get_context("fork")
    verify([files["x"]], out)
    begun = time.monotonic()
    survivors = set()
    for _ in range(120):
        pair = [fork.Process(target=_verify, args=(str(file), str(out))) for file in files.values()]
        rng.shuffle(pair)
        for process in pair:
            process.start()
            time.sleep(rng.uniform(0, 0.02))
        for process in pair:
            time.sleep(rng.uniform(0, 0.04))
            if rng.random() < 0.7:
                process.kill()
            process.join()
        if out.exists():  # else one was killed between its two renames, and the next run restores the old output
            survivors.add(whole_content(out))
        if time.monotonic() - begun > 20:
            break
    verify([files["y"]], out)
    assert whole_content(out) == "y"
    assert survivors == {"x", "y"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.jsonl", "y.jsonl"]
