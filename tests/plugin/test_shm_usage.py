# SPDX-License-Identifier: Apache-2.0
"""Leftover shared memory: segments that a process maps or holds open are in use, others are not."""

import mmap
import os
import shutil

import pytest

from verl_p2r.plugin import shm_usage


@pytest.fixture
def segments(tmp_path):
    """`make(name, size)`: a file an hour old, as a segment in shared memory."""

    def make(name: str, size: int = 8192):
        path = tmp_path / "shm" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))
        return path

    return make


def test_opened_or_mapped_shm_segments_are_in_use(segments):
    opened, mapped, left = segments("psm_opened"), segments("psm_mapped"), segments("psm_left")
    with opened.open("rb"):
        with mapped.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert list(shm_usage.leftovers(left.parent)) == [left]
        view.close()
        assert list(shm_usage.leftovers(left.parent)) == [left, mapped]
    assert shm_usage.leftovers(left.parent)[left] >= 8192


def test_new_shm_segments_and_folders_are_not_leftovers(segments):
    old, new = segments("psm_old"), segments("psm_new")
    os.utime(new)
    (old.parent / "folder").mkdir()
    assert list(shm_usage.leftovers(old.parent)) == [old]


def test_ended_or_unreadable_process_uses_no_shm_segment(segments, tmp_path):
    left = segments("psm_left")
    for name in ("17", "self"):
        (tmp_path / "proc" / name).mkdir(parents=True)
    assert list(shm_usage.leftovers(left.parent, tmp_path / "proc")) == [left]


def test_free_shm_bytes_equal_file_system_values(tmp_path):
    free, total = shm_usage.free_and_total(tmp_path)
    assert total == shutil.disk_usage(tmp_path).total
    assert 0 < free <= total
