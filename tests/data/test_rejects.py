# SPDX-License-Identifier: Apache-2.0
"""Rejected rows: counted, listed, remembered for the next start, and looked at again when something changed."""

import json
import os
import threading

import pytest

from verl_p2r.data.rejects import RejectedRow, Screening, keep_or_raise, key_of, load_or_screen


def reject(position: int, reason: str = "over-long", medium: str | None = None) -> RejectedRow:
    return RejectedRow(position, "rl.jsonl", position, "prompt", reason, f"too long\u2028{position}", medium)


def test_small_share_of_rejects_is_dropped_and_listed(tmp_path, capsys):
    kept = keep_or_raise(
        Screening(100, (reject(7),)), max_share=0.01, setting="share", listing=tmp_path / "run" / "list.jsonl"
    )
    assert kept == [i for i in range(100) if i != 7]
    assert "1 of 100 rows rejected (over-long 1); all of them: " in capsys.readouterr().out
    (line,) = (tmp_path / "run" / "list.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "position": 7,
        "file": "rl.jsonl",
        "row": 7,
        "field": "prompt",
        "reason": "over-long",
        "message": "too long\u20287",
        "medium": None,
    }


def test_too_large_reject_share_raises_with_counts_and_list(tmp_path):
    rejects = (reject(0), *(reject(i, "missing file") for i in range(1, 8)))
    with pytest.raises(ValueError) as caught:
        keep_or_raise(Screening(100, rejects), max_share=0.07, setting="data.share", listing=tmp_path / "list.jsonl")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"8 of 100 rows rejected (missing file 7, over-long 1); all of them: {tmp_path}/list.jsonl"
    assert "  … and 3 more" in lines
    assert lines[-1].startswith("That is more than data.share=0.07: repair the data, or raise it")
    assert len((tmp_path / "list.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("bad", "total", "share", "passes"),
    [(1, 16, 0.01, False), (1, 100, 0.0, False), (1, 1, 1.0, False), (1, 2, 0.5, True)],
)
def test_reject_share_is_inclusive_and_empty_result_always_fails(bad, total, share, passes):
    screening = Screening(total, tuple(reject(i) for i in range(bad)))
    if passes:
        assert len(keep_or_raise(screening, max_share=share, setting="share", listing=None)) == total - bad
    else:
        with pytest.raises(ValueError, match=f"{bad} of {total} rows rejected"):
            keep_or_raise(screening, max_share=share, setting="share", listing=None)


def test_run_without_rejects_removes_old_reject_list(tmp_path, capsys):
    (tmp_path / "list.jsonl").write_text("{}\n")
    assert keep_or_raise(Screening(2), max_share=0, setting="share", listing=tmp_path / "list.jsonl") == [0, 1]
    assert not (tmp_path / "list.jsonl").exists()
    assert capsys.readouterr().out == ""


class Runs:
    """A screening to run, counted."""

    def __init__(self, screening: Screening):
        self.screening, self.count = screening, 0

    def __call__(self) -> Screening:
        self.count += 1
        return self.screening


def test_screening_result_is_cached_under_its_key(tmp_path):
    run = Runs(Screening(9, (reject(1), reject(4, "missing file", str(tmp_path / "gone.mp4")))))
    assert load_or_screen(tmp_path, "a", run) == load_or_screen(tmp_path, "a", run) == run.screening
    assert run.count == 1
    load_or_screen(tmp_path, "b", run)
    assert run.count == 2
    load_or_screen(None, "a", run)
    assert run.count == 3


@pytest.mark.parametrize("change", ["appears", "grows", "goes"])
def test_changed_rejected_file_is_screened_again(tmp_path, change):
    medium = tmp_path / "a.mp4"
    if change != "appears":
        medium.write_text("half")
    run = Runs(Screening(9, (reject(4, "unreadable file", str(medium)),)))
    load_or_screen(tmp_path, "a", run)
    load_or_screen(tmp_path, "a", run)
    assert run.count == 1
    medium.unlink() if change == "goes" else medium.write_text("the whole of it")
    load_or_screen(tmp_path, "a", run)
    assert run.count == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "list", "bytes"])
def test_damaged_screening_cache_is_rebuilt_with_warning(tmp_path, damage):
    run = Runs(Screening(9, (reject(1), reject(4))))
    load_or_screen(tmp_path, "a", run)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(
        {"cut": b"".join(lines[:-1]), "empty": b"", "garbage": b"{]\n", "list": b"[]\n", "bytes": b"\xff\xfe\n"}[damage]
    )
    with pytest.warns(UserWarning, match="is damaged"):
        assert load_or_screen(tmp_path, "a", run) == run.screening
    assert run.count == 2
    assert path.read_bytes() == whole


def test_concurrent_starts_leave_one_complete_cache_file(tmp_path):
    barrier = threading.Barrier(8)
    screening = Screening(9000, tuple(reject(i) for i in range(500)))
    outcomes = []

    def start():
        barrier.wait()
        outcomes.append(load_or_screen(tmp_path, "a", lambda: screening))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [screening] * 8
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert load_or_screen(tmp_path, "a", Runs(Screening(0))) == screening


def test_unwritable_screening_cache_only_gives_warning(tmp_path):
    (tmp_path / "file").touch()
    screening = Screening(3)
    with pytest.warns(UserWarning, match="cannot be written"):
        assert load_or_screen(tmp_path / "file" / "folder", "a", lambda: screening) == screening


def test_screening_key_depends_on_files_settings_and_environment(tmp_path, monkeypatch):
    file = tmp_path / "rl.jsonl"
    file.write_text("a")
    keys = [key_of([file], 4096, {"fps": 2.0})]
    assert key_of([str(file)], 4096, {"fps": 2.0}) == keys[0]
    keys += [key_of([file], 4095, {"fps": 2.0}), key_of([file], 4096, {"fps": 1.0}), key_of([file, file], 4096, {})]
    file.write_text("ab")
    keys.append(key_of([file], 4096, {"fps": 2.0}))
    os.utime(file, ns=(1, 1))
    keys.append(key_of([file], 4096, {"fps": 2.0}))
    monkeypatch.setenv("VERL_P2R_MEDIA_TIMEOUT", "7")
    keys.append(key_of([file], 4096, {"fps": 2.0}))
    assert len(set(keys)) == len(keys)
