# SPDX-License-Identifier: Apache-2.0
"""What a request holds of a medium: the part of it that the record is about, seen as the record says."""

import base64
import io

import pytest
from PIL import Image
from release_files import release_record

from data_tools.media.parts import media_parts
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Record
from verl_p2r.media.rules import MediaSettings


def images_of(url: str) -> list[Image.Image]:
    head, _, data = url.partition(",")
    assert head in ("data:video/jpeg;base64", "data:image/jpeg;base64")
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in data.split(",")]


def test_request_holds_video_part_named_by_record(make_clip):
    clip = make_clip(40, 4)
    media = {"video_start": 5, "video_end": 7, "fps": 2, "resized_height": 56, "resized_width": 84}
    record = Record.parse(release_record(path=clip.name, media=media))
    (part,), body = media_parts(record, clip.parent, MediaSettings())
    # By hand: frames 20 to 28, at 2 a second four of them.
    indices = body["media_io_kwargs"]["video"]["frames_indices"]
    assert indices == [20, 23, 25, 28]
    frames = images_of(part["video_url"]["url"])
    assert [frame.size for frame in frames] == [(84, 56)] * 4
    for index, frame in zip(indices, frames, strict=True):
        red, green, blue = frame.convert("RGB").getpixel((40, 30))
        assert max(abs(value - (16 + 5 * index)) for value in (red, green, blue)) < 6  # a frame tells its index
    parts, _ = media_parts(record, clip.parent, MediaSettings(), video_as="images")
    assert [part["text"] for part in parts[::2]] == [f"<{index / 4:.1f} seconds>" for index in indices]


def test_request_holds_image_at_size_named_by_record(tmp_path):
    Image.new("RGB", (560, 560), "red").save(tmp_path / "a.png")
    record = Record.parse(release_record(data_type="image", path="a.png", media={"max_pixels": 168 * 168}))
    (part,), _ = media_parts(record, tmp_path, MediaSettings())
    (image,) = images_of(part["image_url"]["url"])
    assert image.size == (168, 168)


@pytest.mark.parametrize("media", [{"video_start": 99}, {"nframes": 99}, {"fps": 1, "nframes": 4}])
def test_unsatisfiable_media_rules_are_blamed_on_record(make_clip, media):
    clip = make_clip(40, 4)
    record = Record.parse(release_record(path=clip.name, media=media))
    with pytest.raises(RowError, match=r"field media: .* cannot be met: .*: correct it, or drop the record") as caught:
        media_parts(record, clip.parent, MediaSettings())
    assert (caught.value.field, caught.value.reason) == ("media", "sampling rules")
