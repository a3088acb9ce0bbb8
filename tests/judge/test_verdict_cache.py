# SPDX-License-Identifier: Apache-2.0
"""The verdict cache: shared calls, an LRU, and a file that survives the process and never blocks a call."""

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys

import pytest

from verl_p2r.judge import Verdict, verdict_cache
from verl_p2r.judge.verdict_cache import VerdictCache

YES = Verdict(True, "states it", retries=2, prompt_tokens=7, completion_tokens=3)
NO = Verdict(False, "does not")
KEPT_YES = Verdict(True, "states it", "cache")


class Maker:
    """A judge that counts its calls and waits for `go`, if given."""

    def __init__(self, verdict: Verdict | Exception = YES, go: asyncio.Event | None = None) -> None:
        self.verdict, self.go, self.calls = verdict, go, 0

    async def __call__(self) -> Verdict:
        self.calls += 1
        if self.go:
            await self.go.wait()
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


def get(cache: VerdictCache, key: bytes, make: Maker) -> Verdict:
    return asyncio.run(cache.get(key, make))


@pytest.mark.parametrize(("verdict", "kept"), [(YES, KEPT_YES), (NO, Verdict(False, "does not", "cache"))])
def test_cached_verdict_is_not_asked_for_again(verdict, kept):
    cache, make = VerdictCache(8), Maker(verdict)
    assert get(cache, b"a", make) == verdict
    assert get(cache, b"a", make) == get(cache, b"a", make) == kept
    assert make.calls == 1
    get(cache, b"b", make)
    assert make.calls == 2


def test_missing_verdicts_are_not_cached(tmp_path):
    cache, make = VerdictCache(8, tmp_path / "v.sqlite"), Maker(Verdict(None, "no reply"))
    for _ in range(3):
        assert get(cache, b"a", make) == Verdict(None, "no reply")
    assert make.calls == 3
    cache.close()
    assert rows(tmp_path / "v.sqlite") == []


def test_least_recently_used_verdict_is_evicted_first():
    cache, make = VerdictCache(2), Maker()
    for key in (b"a", b"b", b"a", b"c"):  # b was used longest ago
        get(cache, key, make)
    assert make.calls == 3
    get(cache, b"a", make)
    assert make.calls == 3
    get(cache, b"b", make)
    assert make.calls == 4


def test_concurrent_callers_wait_for_one_judge_call():
    async def main():
        cache, make = VerdictCache(8), Maker(go=asyncio.Event())
        callers = [asyncio.ensure_future(cache.get(b"a", make)) for _ in range(20)]
        other = asyncio.ensure_future(cache.get(b"b", make))
        await asyncio.sleep(0.01)
        make.go.set()
        return await asyncio.gather(*callers), await other, make.calls

    verdicts, other, calls = asyncio.run(main())
    assert calls == 2
    assert other == YES
    assert sorted(v.source for v in verdicts) == ["cache"] * 19 + ["judge"]
    assert sum(v.prompt_tokens for v in verdicts) == 7  # counted once


def test_cancelled_caller_does_not_cancel_shared_call():
    async def main():
        cache, make = VerdictCache(8), Maker(go=asyncio.Event())
        first, second = (asyncio.ensure_future(cache.get(b"a", make)) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        make.go.set()
        return await second, make.calls, await asyncio.gather(first, return_exceptions=True)

    verdict, calls, (cancelled,) = asyncio.run(main())
    assert (verdict, calls) == (KEPT_YES, 1)
    assert isinstance(cancelled, asyncio.CancelledError)


def test_judge_exception_reaches_every_caller_and_is_not_cached():
    async def main():
        cache, make = VerdictCache(8), Maker(RuntimeError("boom"))
        failed = await asyncio.gather(*(cache.get(b"a", make) for _ in range(3)), return_exceptions=True)
        return failed, make.calls, await cache.get(b"a", Maker())

    failed, calls, verdict = asyncio.run(main())
    assert [str(error) for error in failed] == ["boom"] * 3
    assert (calls, verdict) == (1, YES)


def test_event_loops_share_cached_verdicts():
    """A task of one loop must not be awaited in another."""
    cache = VerdictCache(8)

    async def leave_one_in_flight():
        flight = asyncio.ensure_future(cache.get(b"a", Maker(go=asyncio.Event())))
        await asyncio.sleep(0.01)
        assert not flight.done()

    asyncio.run(leave_one_in_flight())
    assert get(cache, b"a", Maker()) == YES
    assert get(cache, b"a", Maker()) == KEPT_YES


# The file


def rows(path) -> list[tuple]:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT key, value, reason, model FROM verdicts ORDER BY key").fetchall()


def test_verdicts_are_read_back_from_cache_file(tmp_path):
    path = tmp_path / "new" / "folder" / "v.sqlite"
    cache, make = VerdictCache(8, path, "m"), Maker()
    get(cache, b"a", make)
    get(cache, b"b", Maker(NO))
    cache.close()
    assert rows(path) == [(b"a", 1, "states it", "m"), (b"b", 0, "does not", "m")]
    again = VerdictCache(8, path)
    assert get(again, b"a", make) == KEPT_YES
    assert get(again, b"b", make).value is False
    assert make.calls == 1
    again.close()


def test_other_process_sees_new_verdict_immediately(tmp_path):
    path = tmp_path / "v.sqlite"
    ours = VerdictCache(8, path)
    make = Maker()
    get(ours, b"x", make)  # the file is open here
    program = (
        "import asyncio, sys\n"
        "from verl_p2r.judge import Verdict\n"
        "from verl_p2r.judge.verdict_cache import VerdictCache\n"
        "async def make(): return Verdict(False, 'theirs')\n"
        "cache = VerdictCache(8, sys.argv[1]); asyncio.run(cache.get(b'a', make)); cache.close()"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)
    assert get(ours, b"a", make) == Verdict(False, "theirs", "cache")
    assert make.calls == 1
    ours.close()


WRITERS = """
import asyncio, sys
from verl_p2r.judge import Verdict
from verl_p2r.judge.verdict_cache import VerdictCache
async def main(cache, name):
    async def make():
        return Verdict(True, name)
    await asyncio.gather(*(cache.get(f"{name} {i}".encode(), make) for i in range(200)))
cache = VerdictCache(8, sys.argv[1])
asyncio.run(main(cache, sys.argv[2]))
cache.close()
"""


def test_concurrent_writers_lose_no_verdict(tmp_path):
    path = tmp_path / "v.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITERS, str(path), str(i)]) for i in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert len(rows(path)) == 600


def broken_text(path):
    path.write_bytes(b"this is not a database, and longer than a database header " * 100)


def broken_table(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE verdicts (something TEXT)")


def folder(path):
    path.mkdir()


def no_parent(path):
    path.parent.rmdir()
    path.parent.write_text("a file where the folder should be")


@pytest.mark.parametrize("spoil", [broken_text, broken_table, folder, no_parent])
def test_broken_cache_file_gives_only_a_warning(tmp_path, caplog, spoil):
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / "v.sqlite"
    spoil(path)
    cache, make = VerdictCache(8, path), Maker()
    with caplog.at_level(logging.WARNING):
        assert [get(cache, bytes([i]), make) for i in range(5)] == [YES] * 5
        cache.close()
    assert make.calls == 5
    assert get(cache, b"\0", make) == KEPT_YES  # from memory
    messages = [record.message for record in caplog.records]
    assert 1 <= len(messages) <= 2  # one for reading, one for writing
    assert all(f"the verdict cache {path}: " in message and "fix or delete" in message for message in messages)


def test_read_only_cache_file_is_still_read(tmp_path, caplog, monkeypatch):
    path = tmp_path / "v.sqlite"
    first = VerdictCache(8, path)
    get(first, b"a", Maker())
    first.close()
    connect = sqlite3.connect  # a root user may write any file: open it as one that cannot be written
    monkeypatch.setattr(sqlite3, "connect", lambda path, **kwargs: connect(f"file:{path}?mode=ro", uri=True, **kwargs))
    cache, make = VerdictCache(8, path), Maker()
    with caplog.at_level(logging.WARNING):
        assert get(cache, b"b", make) == YES
        assert get(cache, b"a", make) == KEPT_YES
        cache.close()
    assert make.calls == 1
    assert [record.message.split()[1] for record in caplog.records] == ["write"]


def test_locked_cache_file_is_not_waited_for_repeatedly(tmp_path, caplog, monkeypatch):
    path = tmp_path / "v.sqlite"
    first = VerdictCache(8, path)
    get(first, b"a", Maker())
    first.close()
    waits = []
    connect = sqlite3.connect

    def counted(*args, **kwargs):
        waits.append(kwargs["timeout"])
        return connect(*args, **kwargs)

    with connect(path, timeout=1) as holder:
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", counted)
        cache, make = VerdictCache(8, path), Maker()
        with caplog.at_level(logging.WARNING):
            assert [get(cache, b"k%d" % i, make) for i in range(50)] == [YES] * 50
        assert 1 <= len(waits) <= 2  # once to read, once to write
        assert max(waits) <= 0.2  # seconds
    cache.close()
    assert make.calls == 50
    assert 1 <= len(caplog.records) <= 2


def test_cache_file_is_used_again_after_recovery(tmp_path, monkeypatch):
    monkeypatch.setattr(verdict_cache, "_PAUSE_S", 0.0)
    path = tmp_path / "v.sqlite"
    path.mkdir()
    cache, make = VerdictCache(1, path), Maker()
    get(cache, b"a", make)
    path.rmdir()
    get(cache, b"b", make)
    get(cache, b"c", make)  # takes b's place in memory
    assert get(cache, b"b", make) == KEPT_YES
    assert make.calls == 3
    cache.close()


@pytest.mark.parametrize("reason", ["\ud83d cut", "\udfff", "a\0b", "\x85\u2028", "x" * 100_000, ""])
def test_any_reason_text_can_be_cached(tmp_path, reason, caplog):
    """A reason that the file cannot store does not affect other verdicts."""
    path = tmp_path / "v.sqlite"
    cache = VerdictCache(8, path)
    with caplog.at_level(logging.WARNING):
        get(cache, b"a", Maker(Verdict(True, reason)))
        get(cache, b"b", Maker(NO))
        cache.close()
        again, make = VerdictCache(8, path), Maker()
        verdicts = [get(again, key, make) for key in (b"a", b"b")]
        again.close()
    assert [verdict.value for verdict in verdicts] == [True, False]
    assert verdicts[0].reason == "".join("\ufffd" if "\ud800" <= sign <= "\udfff" else sign for sign in reason)
    assert make.calls == 0
    assert not caplog.records


@pytest.mark.parametrize(
    ("stored", "verdict"),
    [((1, b"caf\xe9"), Verdict(True, "caf\ufffd", "cache")), ((7, b"odd"), YES), (("no", b"odd"), YES)],
)
def test_foreign_rows_in_cache_file_are_tolerated(tmp_path, stored, verdict, caplog):
    path = tmp_path / "v.sqlite"
    cache = VerdictCache(8, path)
    get(cache, b"a", Maker())
    cache.close()
    value, reason = stored
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE verdicts SET value = ?, reason = CAST(? AS TEXT)", (value, reason))
    again = VerdictCache(8, path)
    assert get(again, b"a", Maker()) == verdict
    again.close()
    assert not caplog.records


def test_tilde_in_cache_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = VerdictCache(8, "~/v.sqlite")
    get(cache, b"a", Maker())
    cache.close()
    assert os.path.exists(tmp_path / "v.sqlite")


def test_closed_cache_still_works_in_memory(tmp_path):
    cache = VerdictCache(8, tmp_path / "v.sqlite")
    get(cache, b"a", Maker())
    cache.close()
    assert get(cache, b"a", Maker()) == KEPT_YES
    assert get(cache, b"b", Maker()) == YES
