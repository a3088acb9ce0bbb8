# SPDX-License-Identifier: Apache-2.0
"""Pictures of media: the frames that training takes, at their times, within the room that they are given."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from data_tools.look.pictures import pictures_of
from verl_p2r.media.decode import read_video
from verl_p2r.media.rules import TRAINING

ROOM = 1 << 20


def opened(picture) -> Image.Image:
    head, _, data = picture.url.partition(",")
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == "JPEG"
    assert image.size == (picture.width, picture.height)
    return image


@pytest.mark.parametrize("frames", [1, 3, 8, 64])
def test_shown_frames_are_training_frames_with_their_times(make_clip, frames):
    clip = make_clip(42, 5)  # 8.4 s long: training takes 16
    trained = read_video(TRAINING.fill({"video": str(clip)}))[1]["frames_indices"]
    shown = pictures_of({"video": str(clip)}, frames, ROOM)
    assert (shown.error, shown.seen) == ("", len(trained))
    indices = [round(picture.seconds * 5) for picture in shown.pictures]
    assert len(indices) == min(frames, len(trained))
    assert set(indices) <= set(trained)
    assert (indices[0], indices[-1] if frames > 1 else trained[-1]) == (trained[0], trained[-1])
    if frames >= len(trained):
        assert indices == trained
    for index, picture in zip(indices, shown.pictures, strict=True):
        grey = np.asarray(opened(picture), np.float64).mean()
        assert abs(grey - (16 + 5 * index)) < 4  # a frame tells its index


def test_shown_frames_come_from_video_part_of_record(make_clip):
    element = {"video": str(make_clip(42, 5)), "video_start": 2.0, "video_end": 6.0, "fps": 1.0}
    trained = read_video(TRAINING.fill(element))[1]["frames_indices"]
    shown = pictures_of(element, 8, ROOM)
    assert [round(picture.seconds * 5) for picture in shown.pictures] == trained == [10, 17, 23, 30]


def test_pictures_are_shrunk_to_fit_byte_limit(tmp_path):
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)
    Image.fromarray(noise).save(path)
    sizes = {}
    for room in (1 << 20, 60_000, 12_000):
        shown = pictures_of({"image": str(path)}, 8, room)
        (picture,) = shown.pictures
        opened(picture)
        assert shown.bytes == len(picture.url) <= room
        sizes[room] = picture.width
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert sizes[1 << 20] == 448
    none = pictures_of({"image": str(path)}, 8, 100)
    assert not none.pictures
    assert none.error == f"{path}: its pictures do not fit on the page: ask for fewer records or frames"


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK", "I;16"])
def test_images_of_all_modes_are_shown(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (40, 30)).save(path)
    shown = pictures_of({"image": str(path)}, 8, ROOM)
    assert shown.error == ""
    assert opened(shown.pictures[0]).size == (40, 30)
    assert shown.pictures[0].seconds is None


def test_unreadable_media_are_shown_with_reason(tmp_path, make_clip):
    whole = make_clip(20, 5).read_bytes()
    for name, content in (("cut.mp4", whole[: len(whole) // 2]), ("text.mp4", b"hello"), ("empty.mp4", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        shown = pictures_of({"video": str(path)}, 8, ROOM)
        assert not shown.pictures
        assert str(path) in shown.error
    for path in (tmp_path / "gone.png", tmp_path / "javascript:alert(1)", tmp_path):
        shown = pictures_of({"image": str(path)}, 8, ROOM)
        assert shown.error == f"{path} does not exist: unpack it there, or set the media root"
