# SPDX-License-Identifier: Apache-2.0
"""No path makes the question raise; folders that may not be entered need a user other than root."""

import os

import pytest

from verl_p2r.media.local_files import is_local_file


@pytest.mark.parametrize(
    "path",
    [
        "",
        "nowhere.mp4",
        "n" * 300,  # a name may have 255 bytes
        "é" * 200,  # 200 characters, 400 bytes
        "a/" * 3000 + "b.mp4",  # a path may have 4,096
        "a\0b",
        "\ud800",
        "file.txt/below",  # a file is not a folder
        "loop",
        "folder",
        "pipe",
        os.devnull,
    ],
)
def test_is_local_file_is_false_for_anything_but_regular_files(tmp_path, path):
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")

    assert not is_local_file(os.path.join(tmp_path, path))


def test_is_local_file_is_true_for_files_and_symlinks_to_them(tmp_path):
    (tmp_path / "größe 1.txt").write_text("x")
    (tmp_path / "link").symlink_to("größe 1.txt")

    assert is_local_file(tmp_path / "größe 1.txt")
    assert is_local_file(str(tmp_path / "link"))


def test_is_local_file_is_false_in_inaccessible_folder(monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", denied)

    assert not is_local_file("closed/a.mp4")
