# SPDX-License-Identifier: Apache-2.0
"""Manifests of any kind: read, another program's, or one line."""

import json

import pytest
from release_files import release_record, write_lines
from typer.testing import CliRunner

from data_tools.cli import app
from data_tools.records.history import history_of

OWN = {"step": "x", "read": 3, "written": 2, "rejected": {"a": 1}, "dropped": {}}


def test_history_lists_each_step_once_in_order(tmp_path):
    first = {"step": "first", "read": 4, "written": 3, "rejected": {}, "dropped": {"b": 1}}
    (tmp_path / "manifest.json").write_text(json.dumps({**OWN, "history": [{**first, "more": 1}], "settings": {}}))
    assert history_of([tmp_path / "a", tmp_path / "b"]) == [first, OWN]


@pytest.mark.parametrize("content", ["{}", '{"name": "an app", "icons": []}'])
def test_another_programs_manifest_is_left_alone(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    assert history_of([tmp_path / "a"]) == []


def manifest(**changes) -> str:
    return json.dumps({**OWN, "history": [], **changes})


DAMAGED = [
    "",
    "x",
    "3",
    "[]",
    "null",
    '"x"',
    manifest()[:-5],
    "[" * 100_000,
    b"\xff\xfe\xff",
    '{"history": 3}',
    '{"history": null}',
    '{"history": []}',
    '{"history": [3]}',
    '{"history": [{"step": "x", "read": "<b>", "written": []}], "read": "y"}',
    manifest(step=3),
    manifest(step="\ud800"),
    manifest(read=-1),
    manifest(read=True),
    manifest(read=1.5),
    manifest(written=10**30),
    manifest(written=None),
    manifest(rejected=[]),
    manifest(rejected={"a": "b"}),
    manifest(dropped={"\ud800": 1}),
    manifest(dropped={"a": []}),
    manifest(history=[{**OWN, "read": None}]),
]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: repr(content)[:40])
def test_damaged_manifest_gives_one_line_error_and_writes_nothing(tmp_path, content):
    (tmp_path / "in").mkdir()
    write_lines(tmp_path / "in" / "part-00000.jsonl", [release_record()])
    path = tmp_path / "in" / "manifest.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in (
        ["verify", str(tmp_path / "in"), "--out", str(tmp_path / "out")],
        ["view", str(tmp_path / "in"), "--out", str(tmp_path / "a.html")],
        ["stats", str(tmp_path / "in")],
        ["to-parquet", str(tmp_path / "in"), "--kind", "rl", "--out", str(tmp_path / "out")],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2, done.output
        (line,) = done.output.split("\n")[:-1]
        assert line.startswith(f"{path}: not the manifest of a step (")
        assert line.endswith("move it away to go on without the counts of earlier steps")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_manifest_above_size_limit_is_refused(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(1 << 36)  # sparse
    with pytest.raises(ValueError, match="larger than 64 MiB"):
        history_of([tmp_path / "a"])
