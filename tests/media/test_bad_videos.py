# SPDX-License-Identifier: Apache-2.0
"""Video files that are damaged, slow or not videos: each is an error that names the file."""

import itertools
import os
import types

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from clip_files import look_at, noise_clip, write
from PIL import Image
from qwen_vl_utils import vision_process

from verl_p2r.media import deadline
from verl_p2r.media.decode import (
    READER,
    decode_frames,
    install_reader,
    local_path,
    read_video,
)
from verl_p2r.media.plan import MediaError
from verl_p2r.media.probe import TIMEOUT_VARIABLE, probe_image


@pytest.mark.parametrize("reader", [read_video, look_at])
def test_decoding_timeout_error_names_file(clips, monkeypatch, reader):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "1e-6")
    with pytest.raises(MediaError, match=rf"not read within 1e-06 s.*{TIMEOUT_VARIABLE}") as caught:
        reader({"video": str(clips["quick"])})
    assert str(caught.value).startswith(str(clips["quick"]))


def test_timeout_applies_during_frame_decoding(clips, monkeypatch):
    clock = itertools.chain([0.0, 30.0, 59.0], itertools.repeat(61.0))
    monkeypatch.setattr(deadline, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(MediaError, match="not read within 60 s"):
        decode_frames(str(clips["quick"]), range(8))


def test_non_numeric_media_timeout_is_an_error(clips, monkeypatch):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "soon")
    with pytest.raises(ValueError, match=f"{TIMEOUT_VARIABLE} is 'soon': give seconds"):
        look_at({"video": str(clips["quick"])})


def sing(path, codec: str, cover: bool = False):
    """Write a second of silence, with a cover picture or without."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16000)
        stream.layout = "mono"
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width = picture.height = 64
            picture.pix_fmt = "yuvj420p"
            picture.disposition = Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame(64, 64, "yuvj420p")))
            container.mux(picture.encode())
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, clips):
    """Files that cannot be read as videos, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("bad")
    whole = noise_clip(folder / "whole.mp4").read_bytes()
    contents = {
        "cut": whole[: len(whole) * 2 // 3],
        "cut-index": clips["quick"].read_bytes()[:-200],  # this one's index is at the end
        "empty": b"",
        "text": b"<html>404 not found</html>\n" * 20,
        "damaged": whole[: len(whole) // 2] + b"\1" * (len(whole) - len(whole) // 2),
        "unfinished": whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
    }
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    sing(folder / "audio.mp4", "aac")
    sing(folder / "song.mp3", "libmp3lame", cover=True).rename(folder / "song.mp4")
    os.mkfifo(folder / "pipe.mp4")  # reading it would wait for ever
    return folder


BAD = {
    "cut": "truncated: it has",
    "cut-index": "cannot be read as a video",
    "empty": "cannot be read as a video",
    "text": "cannot be read as a video",
    "unfinished": "holds zeros instead of video",
    "audio": "no video stream",
    "song": "not of a known format",
    "missing": "no such file",
    "pipe": "no such file",
}


@pytest.mark.parametrize(("name", "reason"), BAD.items(), ids=list(BAD))
@pytest.mark.parametrize("reader", [read_video, look_at])
def test_invalid_video_error_names_file(bad_files, reader, name, reason):
    path = str(bad_files / f"{name}.mp4")
    with pytest.raises(MediaError, match=reason) as caught:
        reader({"video": path})
    assert str(caught.value).startswith(path)


def test_damage_invisible_to_probe_is_found_when_decoding(bad_files):
    path = str(bad_files / "damaged.mp4")
    look_at({"video": path})  # as far as a look at the container goes
    for indices in (range(16), [15]):
        with pytest.raises(
            MediaError, match=r"frame \d+ cannot be decoded: the file is truncated or corrupt"
        ) as caught:
            decode_frames(path, indices)
        assert str(caught.value).startswith(path)


def test_change_of_frame_size_is_an_error_that_names_file(tmp_path):
    path = tmp_path / "clip.h264"
    parts = [write(tmp_path / f"{side}.h264", 4, size=(side, side)).read_bytes() for side in (48, 64)]
    path.write_bytes(b"".join(parts))
    with pytest.raises(MediaError, match=r"clip\.h264: the size of the picture changes, at frame \d") as caught:
        decode_frames(str(path), range(8))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("reader", [read_video, look_at])
@pytest.mark.parametrize(
    "rules",
    [{"nframes": 10}, {"fps": 1.0, "nframes": 4}, {"video_start": 9.0}, {"video_start": 1.0, "video_end": 0.5}],
    ids=str,
)
def test_unsatisfiable_sampling_rules_error_names_video(clips, reader, rules):
    path = str(clips["quick"])  # 8 frames, 2 seconds
    with pytest.raises(MediaError, match="sampling rules") as caught:
        reader({"video": path, **rules})
    assert str(caught.value).startswith(path)


def test_images_are_probed_by_path(tmp_path):
    Image.new("RGB", (30, 30)).save(tmp_path / "good.png")
    assert probe_image(str(tmp_path / "good.png")) == (30, 30)
    assert probe_image(local_path(f"file://{tmp_path / 'good.png'}")) == (30, 30)
    (tmp_path / "text.png").write_text("not an image")
    for name, reason in (("text.png", "cannot be opened as an image"), ("missing.png", "cannot be opened as an image")):
        with pytest.raises(MediaError, match=reason) as caught:
            probe_image(str(tmp_path / name))
        assert str(caught.value).startswith(str(tmp_path / name))


def test_qwen_vl_utils_uses_our_reader_and_shows_its_errors(clips, bad_files):
    install_reader()
    install_reader()  # idempotent
    video, metadata = vision_process.fetch_video(
        {"video": str(clips["quick"]), "fps": 2.0, "resized_height": 112, "resized_width": 112},
        return_video_metadata=True,
    )
    assert metadata["video_backend"] == READER
    assert torch.equal(video, read_video({"video": str(clips["quick"]), "fps": 2.0})[0].float())
    with pytest.raises(MediaError, match="no such file"):  # not the error of a fallback
        vision_process.fetch_video({"video": str(bad_files / "missing.mp4")})
