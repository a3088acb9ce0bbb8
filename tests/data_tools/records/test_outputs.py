# SPDX-License-Identifier: Apache-2.0
"""Odd places to write to, and disks that are full: one line, exit code 2, and the old output stays."""

import errno
import os
import random
import string
import subprocess
from pathlib import Path

import pytest
from pipeline_records import make_records
from release_files import release_record, write_lines
from typer.testing import CliRunner

from data_tools.cli import app
from data_tools.records.folders import whole_files
from data_tools.terminal import explained, say

STEPS = ("generate", "verify", "judge", "decontaminate", "to-parquet", "import-release", "view", "stats")


def command_of(name: str, file: Path, out: Path, server=None) -> list[str]:
    """The command that makes `out` of a file of records."""
    more = {
        "generate": ["--model", "judge", "--media-root", str(file.parent)],
        "judge": ["--judge", "facts"],
        "decontaminate": ["--benchmark", str(file.parent / "benchmark.jsonl")],
        "to-parquet": ["--kind", "rl"],
    }.get(name, [])
    if name == "generate":
        more += ["--base-url", server.base_url if server else "http://localhost:9/v1"]
    source = file.parent / "release" if name == "import-release" else file
    return [name, str(source), "--png" if name == "stats" else "--out", str(out), *more]


def refused(command: list[str]) -> str:
    """The one line of a command that cannot do what it was asked; `stats` shows its tables before."""
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2, done.output
    lines = done.output.split("\n")[:-1]
    assert len(lines) == 1 or command[0] == "stats", done.output
    return lines[-1]


def tree(folder: Path) -> dict[str, bytes | str | None]:
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("name", [name for name in STEPS if name not in ("import-release", "stats")])
@pytest.mark.parametrize("to", ["real", "nowhere", "link"], ids=["a folder", "nothing", "itself"])
def test_output_path_that_is_a_symlink_is_refused(tmp_path, name, to):
    file = write_lines(tmp_path / "in.jsonl", [release_record(facts=["red"])])
    write_lines(tmp_path / "benchmark.jsonl", [{"question": "another"}])
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(to)
    before = tree(tmp_path)
    line = refused(command_of(name, file, tmp_path / "link"))
    assert line == f"{tmp_path}/link is a symbolic link to {to}: name the place that it points to"
    assert tree(tmp_path) == before


def test_symlinks_in_output_parent_path_are_followed(tmp_path):
    file = write_lines(tmp_path / "in.jsonl", [release_record()])
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert CliRunner().invoke(app, command_of("verify", file, tmp_path / "link" / "out")).exit_code == 0
    assert (tmp_path / "real" / "out" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("in.jsonl", "holds something other than the output"),
        ("in.jsonl/out", "in.jsonl: File exists: something else is there: name another output"),
        ("loop/out", "loop: File exists: something else is there: name another output"),
        (".", "is read from it: name another folder"),
        ("below/..", "is read from it: name another folder"),
        ("app", "holds something other than the output"),
        ("old", "holds something other than the output"),
        ("n" * 256, "File name too long: use a shorter name"),
        ("/dev/null", "holds something other than the output"),
    ],
)
def test_invalid_output_path_gives_one_line_error(tmp_path, out, message):
    file = write_lines(tmp_path / "in.jsonl", [release_record()])
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "below").mkdir()
    for folder, manifest in (("app", '{"name": "an app"}'), ("old", '{"step": "verify", "history": [')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "manifest.json").write_text(manifest)
    before = tree(tmp_path)
    assert message in refused(command_of("verify", file, tmp_path / out))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("out", ["/dev/null", "folder"])
def test_view_page_replaces_only_regular_files(tmp_path, out):
    file = write_lines(tmp_path / "in.jsonl", [release_record()])
    (tmp_path / "folder").mkdir()
    assert "is not a regular file: name another file" in refused(command_of("view", file, tmp_path / out))
    assert not Path("/dev/null").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in.jsonl"]


@pytest.mark.parametrize("rest", ["partial", "old"])
def test_leftovers_of_killed_run_are_kept_while_used_as_input(tmp_path, rest):
    (tmp_path / f".out.{rest}").mkdir()
    file = write_lines(tmp_path / f".out.{rest}" / "part-00000.jsonl", [release_record()])
    assert "is read from it: name another folder" in refused(command_of("verify", file, tmp_path / "out"))
    assert file.is_file()


def test_input_removed_during_step_gives_one_line_error(tmp_path, monkeypatch):
    file = write_lines(tmp_path / "in.jsonl", [release_record()])
    monkeypatch.setattr("data_tools.steps.run.count_records", lambda files: file.unlink() or 1)
    line = refused(command_of("verify", file, tmp_path / "out"))
    assert (
        line
        == f"{file}: No such file or directory: it was removed or never existed: check the name, and run this again"
    )
    assert not list(tmp_path.iterdir())


def test_failed_rename_restores_old_output(tmp_path, monkeypatch):
    file = write_lines(tmp_path / "in.jsonl", [release_record()])
    assert CliRunner().invoke(app, command_of("verify", file, tmp_path / "out")).exit_code == 0
    before, rename = tree(tmp_path), os.rename

    def fails(source, target):
        if Path(source).name == ".out.partial":
            raise OSError(errno.EBUSY, "Device or resource busy", str(source))
        rename(source, target)

    monkeypatch.setattr("data_tools.records.folders.os.rename", fails)
    assert "it is in use, for example as a mount point" in refused(command_of("verify", file, tmp_path / "out"))
    assert tree(tmp_path) == before


def test_file_set_is_written_completely_or_not_at_all(tmp_path):
    (tmp_path / "b.png").mkdir()
    (tmp_path / "a.png").write_text("old")
    with pytest.raises(ValueError, match="is not a regular file"), whole_files(tmp_path, "set") as partial:
        (partial / "a.png").write_text("new")
        (partial / "b.png").write_text("new")
    assert (tmp_path / "a.png").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(errno.ENOSPC, "x"),
            "No space left on device: free some space there, or name an output on another disk",
        ),
        (OSError(errno.EIO, "x", "/a"), "/a: Input/output error: check the disk, or the connection to it"),
        (OSError(errno.EDQUOT, "x", b"/a\xff"), "/a\udcff: Disk quota exceeded: free some of your quota"),
        (OSError(errno.EXDEV, "x", "/a"), "/a: Invalid cross-device link"),
        (OSError("its own words"), "its own words"),
    ],
)
def test_system_errors_are_explained_with_path_and_remedy(error, text):
    assert explained(error).startswith(text)


def test_messages_are_one_printable_line(capsys):
    say("a\nb \x1b[31m \udcff [red] é")
    assert capsys.readouterr().out == "a\\nb \\x1b[31m \\udcff [red] é\n"


def test_internal_errors_are_not_hidden(tmp_path, monkeypatch):
    def fault(*_, **__):
        raise TypeError("ours")

    monkeypatch.setattr("data_tools.steps.verify.verify", fault)
    file = write_lines(tmp_path / "in.jsonl", [release_record()])
    done = CliRunner().invoke(app, command_of("verify", file, tmp_path / "out"))
    assert isinstance(done.exception, TypeError)


@pytest.fixture
def small(tmp_path):
    """A file system of one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, free: int) -> None:
    """Leave this many bytes free."""
    state = os.statvfs(folder)
    (folder / "fill").write_bytes(bytes(state.f_bavail * state.f_frsize - free))


def inputs_of(folder: Path, count: int) -> Path:
    """Records that do not compress, and the other files that the commands want."""
    rng, text = random.Random(0), string.ascii_letters + string.digits
    raws = make_records(folder, count, videos=0)
    for raw in raws:
        noise = "".join(rng.choices(text, k=4000))
        raw |= {"problem": f"{raw['problem']} {noise}", "facts": ["red"], "observation": "red", "process": "so"}
        raw |= {"output": f"<observation>red {noise}</observation><think>so</think>{raw['solution']}"}
        raw["data_source"] = noise[:500]
    write_lines(folder / "benchmark.jsonl", [{"question": "another"}])
    file = write_lines(folder / "in.jsonl", raws)
    (folder / "release").mkdir(exist_ok=True)
    (folder / "release" / "VideoP2R-263k_rl.part1of1.json.gz").write_bytes(file.read_bytes())
    return file


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_full_disk_gives_one_line_error_and_keeps_old_output(tmp_path, small, judge_server, name):
    out = small / "out"
    command = command_of(name, inputs_of(tmp_path / "inputs", 5), out, judge_server)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    before = {path: content for path, content in tree(small).items() if ".sqlite" not in path}
    inputs_of(tmp_path / "inputs", 100)
    for free in (0, 4096, 8192, 12288, 16384, 40960, 81920, 122880):
        fill(small, free)
        line = refused(command)
        assert "No space left on device: free some space" in line or "disk is full): free some space" in line, line
        assert str(small) in line
        (small / "fill").unlink()
        assert {path: content for path, content in tree(small).items() if ".sqlite" not in path} == before


@pytest.mark.slow
def test_read_only_disk_gives_one_line_error(tmp_path, small, judge_server):
    file = inputs_of(tmp_path / "inputs", 5)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    for name in STEPS:
        line = refused(command_of(name, file, small / "out", judge_server))
        assert "Read-only file system: name an output on another disk, or mount this one for writing" in line
        assert str(small) in line
