# SPDX-License-Identifier: Apache-2.0
"""What may stand in the file of replies, and what may have become of it: a reply costs its record, never the step."""

import contextlib
import json
import os
import random
import sqlite3
from pathlib import Path

import pytest
from release_files import lines_of, release_record, write_lines
from typer.testing import CliRunner

from data_tools.cli import app
from data_tools.steps.judge import JudgeStepSettings, judge
from data_tools.steps.ledger import ReplyLedger
from data_tools.steps.replies import KEYS, Replies
from verl_p2r.data.record import Record

FACT = {"facts": ["red"]}


def judged(tmp_path: Path, count: int = 5, **changes):
    file = write_lines(tmp_path / "in.jsonl", [release_record(i, **FACT) for i in range(count)])
    return judge([file], tmp_path / "out", JudgeStepSettings("facts"), max_reject_share=1.0, **changes)


def in_database(tmp_path: Path, statement: str, *values) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(tmp_path / "out.replies.sqlite", isolation_level=None)) as database:
        return database.execute(statement, values).fetchall()


BAD = [
    "x",
    "",
    "[]",
    "{}",
    "null",
    "3",
    '"Yes"',
    '{"value": "maybe", "reason": 3}',
    '{"value": 1, "reason": "", "source": "judge"}',
    '{"value": true, "reason": null, "source": "judge"}',
    '{"value": true, "source": "judge"}',
    '{"value": true, "reason": "\\ud83d", "source": "judge"}',
    '{"value": true, "reason": "x", "source": "judge"',
    '{"value": ' + "9" * 5000 + "}",
    "[" * 100_000,
    b"\xff\xfe{",
    b"\x00\x00",
    7,
    1e300,
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad)[:30])
def test_unusable_stored_reply_is_asked_for_again(tmp_path, bad):
    assert judged(tmp_path).written == 5
    before = (tmp_path / "out" / "part-00000.jsonl").read_bytes()
    in_database(tmp_path, "UPDATE replies SET reply = ? WHERE key = (SELECT max(key) FROM replies)", bad)
    report = judged(tmp_path)
    assert (report.read, report.written, report.rejected) == (5, 5, {})
    assert (tmp_path / "out" / "part-00000.jsonl").read_bytes() == before
    for (reply,) in in_database(tmp_path, "SELECT reply FROM replies WHERE key != x''"):
        assert json.loads(reply)["value"] is True  # the new reply has taken the place of the bad one


def test_unknown_fields_of_stored_reply_are_not_written(tmp_path):
    judged(tmp_path)
    more = '{"value": true, "reason": "a", "source": "judge", "more": "\\ud800"}'
    in_database(tmp_path, "UPDATE replies SET reply = ? WHERE key != x''", more)
    assert judged(tmp_path).written == 5
    verdicts = [line["verdict"] for line in lines_of(tmp_path / "out" / "part-00000.jsonl")]
    assert verdicts == [{"value": True, "reason": "a", "source": "judge"}] * 5


def command(tmp_path: Path):
    return CliRunner().invoke(
        app, ["judge", str(tmp_path / "in.jsonl"), "--judge", "facts", "--out", f"{tmp_path}/out"]
    )


def spoil(tmp_path: Path, how: str) -> None:
    path = tmp_path / "out.replies.sqlite"
    content = path.read_bytes()
    path.unlink()
    if how == "garbage":
        path.write_bytes(random.Random(0).randbytes(9000))
    elif how == "truncated":
        path.write_bytes(content[:5000])
    elif how == "flipped":
        path.write_bytes(content[:8192] + b"\xaa" * (len(content) - 8192))
    elif how == "another table":
        sqlite3.connect(path).execute("CREATE TABLE verdicts (a)")
    elif how == "other columns":
        sqlite3.connect(path).execute("CREATE TABLE replies (a)")
    elif how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "pipe for its log":
        path.write_bytes(content)
        os.mkfifo(f"{path}-wal")


SPOILT = {
    "garbage": "file is not a database): move the file away; its replies will be asked for again",
    "truncated": "malformed): move the file away; its replies will be asked for again",
    "flipped": "malformed): move the file away; its replies will be asked for again",
    "another table": "is another program's database: name another output, or move it away",
    "other columns": "has no column named key): move the file away",
    "folder": "is not a regular file, so replies cannot be kept in it: move it away",
    "pipe": "is not a regular file, so replies cannot be kept in it: move it away",
    "pipe for its log": "-wal is not a regular file, so replies cannot be kept in it: move it away",
}


@pytest.mark.parametrize(("how", "message"), SPOILT.items(), ids=SPOILT)
def test_damaged_reply_file_gives_one_line_error_and_keeps_output(tmp_path, how, message):
    judged(tmp_path, 300)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    spoil(tmp_path, how)
    done = command(tmp_path)
    assert done.exit_code == 2, done.output
    (line,) = done.output.split("\n")[:-1]
    assert line.startswith(str(tmp_path / "out.replies.sqlite"))
    assert message in line
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_another_programs_database_is_not_touched(tmp_path):
    path = tmp_path / "a.sqlite"
    with sqlite3.connect(path) as mine:
        mine.execute("CREATE TABLE mine (a)")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="another program's database"):
        Replies(path)
    assert path.read_bytes() == before


def test_replies_of_earlier_version_are_asked_again_with_one_warning(tmp_path, caplog):
    judged(tmp_path)
    in_database(tmp_path, "PRAGMA user_version = 0")
    in_database(tmp_path, "UPDATE replies SET key = x'01' || key WHERE key != x''")  # its keys are others
    assert judged(tmp_path).written == 5
    assert caplog.text.count("its 5 replies were stored by an earlier version") == 1
    assert judged(tmp_path).written == 5
    assert caplog.text.count("earlier version") == 1
    assert in_database(tmp_path, "PRAGMA user_version") == [(KEYS,)]


def test_stored_reply_preserves_nul_and_unusual_characters(tmp_path):
    reply = {"output": "a\0b \U0001f600 é \u2028 \\ud83d"}
    with Replies(tmp_path / "a") as replies:
        replies.put(b"1", reply)
    with Replies(tmp_path / "a") as replies:
        assert replies.get(b"1") == reply
        assert replies.get(b"2") is None


def known(replies: Replies, record: Record, root: Path | None) -> bool:
    ledger = ReplyLedger({}, lambda record, reply: (record, None), {"output": str}, replies, root)
    pending = ledger.pending(record)
    if pending is not None:
        ledger.replied(pending, {"output": "x"})
    return pending is None


def test_stored_reply_is_reused_only_for_unchanged_medium(tmp_path):
    record = Record.parse(release_record(1, path="a.png", data_type="image"))
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, content in ((a, "red"), (b, "blu")):
        folder.mkdir()
        (folder / "a.png").write_text(content)
    os.utime(b / "a.png", ns=(0, 1_000_000_001))
    with Replies(tmp_path / "replies") as replies:
        assert not known(replies, record, a)
        assert known(replies, record, a)
        assert not known(replies, record, b)  # another root, another file
        assert known(replies, record, a)
        stat = (a / "a.png").stat()
        (a / "a.png").write_text("green")
        os.utime(a / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert not known(replies, record, a)  # another size
        os.utime(a / "a.png", ns=(0, stat.st_mtime_ns + 1))
        assert not known(replies, record, a)  # another time
        (a / "a.png").rename(tmp_path / "c.png")
        assert not known(replies, record, a)  # no file
        (tmp_path / "c.png").rename(a / "a.png")
        assert known(replies, record, a)  # it was only moved


@pytest.mark.parametrize("path", ["n" * 300 + ".png", "é" * 200])
def test_impossible_file_name_counts_as_missing_medium(tmp_path, path):
    with Replies(tmp_path / "replies") as replies:
        record = Record.parse(release_record(1, path=path))
        assert not known(replies, record, tmp_path)
        assert known(replies, record, tmp_path)


def test_reply_is_discarded_if_medium_changed_meanwhile(tmp_path):
    record = Record.parse(release_record(1, path="a.png", data_type="image"))
    (tmp_path / "a.png").write_text("red")
    with Replies(tmp_path / "replies") as replies:
        ledger = ReplyLedger({}, lambda record, reply: (record, None), {"output": str}, replies, tmp_path)
        pending = ledger.pending(record)
        (tmp_path / "a.png").write_text("other")
        ledger.replied(pending, {"output": "perhaps about the old one"})
        ((same, why),) = ledger.transform([record])
        assert same is record
        assert why.reason == "no reply"
        assert "changed while the step ran" in str(why)


def test_each_medium_is_checked_once_per_pass(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("data_tools.steps.ledger._state", seen.append)
    judged(tmp_path, 5, root=tmp_path)
    assert len(seen) == 10


def test_verdict_keys_include_medium_when_media_root_is_known(tmp_path):
    (tmp_path / "STAR" / "Charades_v1_480").mkdir(parents=True)
    medium = tmp_path / "STAR" / "Charades_v1_480" / "0ab.mp4"
    medium.write_text("one")

    def kept() -> int:
        return in_database(tmp_path, "SELECT count(*) FROM replies WHERE key != x''")[0][0]

    judged(tmp_path, 2, root=tmp_path)
    assert kept() == 2
    medium.write_text("another")
    judged(tmp_path, 2, root=tmp_path)
    assert kept() == 3
    judged(tmp_path, 2)  # the second record has no file either way
    judged(tmp_path, 2)
    assert kept() == 4
