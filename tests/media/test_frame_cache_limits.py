# SPDX-License-Identifier: Apache-2.0
"""The disk cache stays within its bytes, also while several processes write and evict."""

import multiprocessing
import os
import random
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from frame_cache_entries import METADATA, files, key_of, noise

from verl_p2r.media import frame_cache
from verl_p2r.media.frame_cache import FrameCache

# --- size ------------------------------------------------------------------------------------------------------------

ENTRY = 16 * 1024  # bytes, and a little more, that noise of this shape takes: it does not compress
SHAPE = (2, 3, 32, 86)


def age(folder: Path) -> None:
    """Make all entries a minute older: file times are too coarse to order what a test does at once."""
    for path in files(folder):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns - 60 * 10**9, stat.st_mtime_ns - 60 * 10**9))


def test_least_recently_used_entry_is_evicted_first(tmp_path):
    # Each entry is more than 1/32 of the whole, so every put looks; 3/4 of 10.5 entries: seven stay.
    cache = FrameCache(tmp_path, max_bytes=int(10.5 * ENTRY))
    for i in range(7):
        cache.put(key_of(i), noise(i, *SHAPE), METADATA)
        age(tmp_path)
    assert cache.get(key_of(0)) is not None
    assert cache.get(key_of(2)) is not None
    age(tmp_path)
    for i in range(7, 10):
        cache.put(key_of(i), noise(i, *SHAPE), METADATA)
        age(tmp_path)
    kept = {i for i in range(10) if cache.get(key_of(i)) is not None}
    assert kept == {0, 2, 5, 6, 7, 8, 9}


def test_frame_cache_never_exceeds_byte_limit(tmp_path):
    # 40 entries fit: an entry is 1/40, so that about four puts of five look.
    random.seed(0)
    limit = 40 * ENTRY
    cache = FrameCache(tmp_path, max_bytes=limit)
    sizes = []
    for i in range(120):
        cache.put(key_of(i), noise(i, *SHAPE), METADATA)
        sizes.append(sum(path.stat().st_size for path in files(tmp_path)))
    assert max(sizes) <= limit
    assert min(sizes[60:]) > limit / 2  # nor does it throw away what it could keep


def test_few_puts_scan_cache_directory(tmp_path, monkeypatch):
    random.seed(0)
    looks = []
    monkeypatch.setattr(FrameCache, "_evict", lambda self: looks.append(1))
    cache = FrameCache(tmp_path, max_bytes=32 * 50 * ENTRY)  # a put in 50 looks
    for i in range(300):
        cache.put(key_of(i % 5), noise(0, *SHAPE), METADATA)
    assert 1 <= len(looks) <= 18  # 6 on average; beyond 18: 2 in 100,000


def test_entry_above_quarter_of_limit_is_not_cached(tmp_path):
    cache = FrameCache(tmp_path, max_bytes=3 * ENTRY)
    with pytest.warns(UserWarning, match=f"a quarter of its {3 * ENTRY} bytes are not cached"):
        cache.put(key_of(1), noise(0, *SHAPE), METADATA)
    cache.put(key_of(2), torch.zeros(SHAPE, dtype=torch.uint8), METADATA)
    assert [path.name for path in files(tmp_path)] == [f"{key_of(2)}.frames"]


def test_eviction_removes_only_cache_files(tmp_path):
    old, fresh, foreign = (tmp_path / name for name in ("00/a.1.partial", "00/b.2.partial", "notes.txt"))
    old.parent.mkdir()
    for path in (old, fresh, foreign):
        path.write_bytes(bytes(4 * ENTRY))
    os.utime(old, (time.time() - 7200,) * 2)
    os.utime(foreign, (0, 0))
    FrameCache(tmp_path, max_bytes=5 * ENTRY).put(key_of(1), noise(0, *SHAPE), METADATA)
    assert not old.exists()  # its writer died
    assert fresh.exists()  # its writer may be at work
    assert foreign.exists()


# --- many at once ----------------------------------------------------------------------------------------------------


def work(folder: str, seed: int, rounds: int) -> str:
    """Put and get at random; say what went wrong."""
    warnings.simplefilter("error")
    rng = random.Random(seed)
    random.seed(seed)
    cache = FrameCache(folder, max_bytes=24 * ENTRY)
    hits = 0
    for _ in range(rounds):
        i = rng.randrange(40)
        found = cache.get(key_of(i))
        if found is None:
            cache.put(key_of(i), noise(i, *SHAPE), {"number": i})
        elif not torch.equal(found[0], noise(i, *SHAPE)) or found[1] != {"number": i}:
            return f"entry {i} is not what was put"
        else:
            hits += 1
    return "" if hits else "no entry was ever found"


def test_processes_share_a_directory_while_all_of_them_evict(tmp_path):
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        problems = list(pool.map(work, [str(tmp_path)] * 3, range(3), [150] * 3))
    assert problems == ["", "", ""]
    left = files(tmp_path)
    assert left
    assert all(path.suffix == ".frames" for path in left)
    assert sum(path.stat().st_size for path in left) <= 24 * ENTRY


def test_reads_and_eviction_tolerate_disappearing_entries(tmp_path, monkeypatch):
    cache = FrameCache(tmp_path, max_bytes=10 * ENTRY)
    for i in range(5):
        cache.put(key_of(i), noise(i, *SHAPE), METADATA)
    real_read, real_stat = Path.read_bytes, os.stat

    def read_then_lose(path: Path) -> bytes:
        content = real_read(path)
        path.unlink()  # another process evicts it before its time is set
        return content

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_then_lose)
        assert torch.equal(cache.get(key_of(0))[0], noise(0, *SHAPE))
    lost = []

    def lose_then_stat(path, *args, **kwargs):
        if str(path).endswith(f"{key_of(3)}.frames") and not lost:
            lost.append(os.unlink(path))
        return real_stat(path, *args, **kwargs)

    monkeypatch.setattr(frame_cache.os, "stat", lose_then_stat)
    cache.put(key_of(5), noise(5, *SHAPE), METADATA)
    assert lost
    assert [i for i in range(6) if cache.get(key_of(i)) is not None] == [1, 2, 4, 5]


def test_cache_entry_appears_atomically(tmp_path, monkeypatch):
    cache, seen = FrameCache(tmp_path, max_bytes=10**9), []
    real = os.replace

    def look_first(source, target):
        seen.append((cache.get(key_of(1)), Path(source).parent == Path(target).parent))
        real(source, target)

    monkeypatch.setattr(frame_cache.os, "replace", look_first)
    cache.put(key_of(1), noise(0), METADATA)
    assert seen == [(None, True)]  # a rename in one directory is atomic, also on NFS
    assert torch.equal(cache.get(key_of(1))[0], noise(0))
