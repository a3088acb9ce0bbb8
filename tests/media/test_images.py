# SPDX-License-Identifier: Apache-2.0
"""Images through the one door: upright, whole, of known formats, from wherever they come."""

import base64
import io
import json
import os
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from qwen_vl_utils import vision_process

from data_tools.look.pictures import pictures_of
from data_tools.media.parts import media_parts
from verl_p2r.data.record import Record
from verl_p2r.media import image_ends, images
from verl_p2r.media.families import QWEN2_5_VL
from verl_p2r.media.image_ends import jpeg_scans
from verl_p2r.media.images import fetch_image, probe_image, read_image
from verl_p2r.media.plan import MediaError, VisionSpec, plan_image
from verl_p2r.media.probe import probe_element
from verl_p2r.media.rules import MediaSettings
from verl_p2r.plugin.media.media_cache import Source, sources_in

ORIENTATION = 0x0112
SPEC = VisionSpec(QWEN2_5_VL, 14, 2, 2, image_pixels=(3136, 12845056), video_pixels=(3136, 12845056))
FORMATS = {
    "JPEG": {},
    "progressive JPEG": {"progressive": True},
    "PNG": {},
    "WEBP": {},
    "lossless WEBP": {"lossless": True},
    "TIFF": {},
    "packed TIFF": {"compression": "tiff_lzw"},
    "AVIF": {},
}
WITHOUT_EXIF = {"GIF": {}, "BMP": {}, "PPM": {}, "JPEG2000": {}}


def picture() -> Image.Image:
    """Tiles of 120 x 180 pixels, no two sides alike."""
    tiles = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(tiles.repeat(20, 0).repeat(20, 1))


def encoded(name: str, orientation: int | None = None, **more) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
        more["exif"] = exif
    picture().save(file, name.split()[-1], **{**FORMATS, **WITHOUT_EXIF}[name], **more)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", FORMATS)
def test_exif_orientation_is_applied_to_sizes_and_pixels(name, orientation):
    data = encoded(name, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert upright.size == ((180, 120) if orientation < 5 else (120, 180))
    assert probe_image(data) == upright.size[::-1]
    read = read_image({"image": data})
    assert read.size == upright.size
    assert read.tobytes() == upright.tobytes()


def test_phone_portrait_photo_is_upright_in_every_code_path(tmp_path):
    path = tmp_path / "portrait.jpg"
    path.write_bytes(encoded("JPEG", 6))
    upright = ImageOps.exif_transpose(Image.open(path))
    element = {"type": "image", "image": str(path), "max_pixels": 56 * 112}
    expected = vision_process.fetch_image({**element, "image": upright})
    assert expected.height > expected.width
    plan = plan_image(element, probe_element(element), SPEC)
    assert (plan.width, plan.height) == expected.size
    (source,) = sources_in([{"role": "user", "content": [element]}], 14)
    assert source.decode().tobytes() == expected.tobytes()  # RL and SFT
    record = Record.parse(
        {"problem": "?", "problem_type": "free-form", "data_type": "image", "path": path.name, "solution": "x"}
    )
    (part,), _ = media_parts(record, tmp_path, MediaSettings(image_max_pixels=56 * 112))  # the teacher
    sent = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))
    assert sent.size == expected.size
    (shown,) = pictures_of({"image": str(path)}, 1, 1 << 20).pictures  # the page of `view`
    assert shown.height > shown.width


@pytest.mark.parametrize("size", [(60, 90), (200, 120)])
def test_upright_image_is_processed_like_qwen_vl_utils(tmp_path, size):
    path = tmp_path / "a.png"
    picture().resize(size).save(path)
    for rules in ({}, {"max_pixels": 56 * 56}, {"resized_height": 84, "resized_width": 112}):
        element = {"image": str(path), **rules}
        assert fetch_image(element, 14).tobytes() == vision_process.fetch_image(element).tobytes()


def test_transparency_becomes_white_as_in_qwen_vl_utils():
    file = io.BytesIO()
    Image.new("RGBA", (56, 56), (255, 0, 0, 0)).save(file, "PNG")
    assert read_image({"image": file.getvalue()}).getpixel((0, 0)) == (255, 255, 255)


def test_paths_bytes_data_urls_and_pil_images_give_same_image(tmp_path):
    data = encoded("PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    for source in (str(path), f"file://{path}", data, url, picture()):
        element = {"type": "image", "image": source}
        assert probe_element(element) == (120, 180)
        assert read_image(element).tobytes() == picture().tobytes()
        (portable,) = sources_in([{"role": "user", "content": [element]}], 14)
        assert json.loads(portable.element)  # any process can make it again
        assert portable.decode().tobytes() == fetch_image(element, 14).tobytes()


@pytest.mark.parametrize("name", [*FORMATS, *WITHOUT_EXIF])
def test_truncated_image_that_passes_probe_decodes(name):
    whole = encoded(name)
    probe_image(whole)
    refused = 0
    for cut in [*range(1, len(whole), max(1, len(whole) // 40)), *range(len(whole) - 12, len(whole))]:
        try:
            probe_image(whole[:cut])
        except MediaError:
            refused += 1
        else:
            read_image({"image": whole[:cut]})
    assert refused > 30
    with pytest.raises(MediaError):
        probe_image(whole[: len(whole) // 2])


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "packed TIFF"])
def test_image_completeness_is_checked_without_decoding(name, monkeypatch):
    data = encoded(name)
    with Image.open(io.BytesIO(data)) as image:
        kind = type(image)
    monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("decoded"))
    assert probe_image(data) == (120, 180)


def test_exif_after_png_pixels_is_applied():
    """ImageMagick writes an orientation into a text; it is found wherever it stands."""
    data = encoded("PNG")
    end = data.index(b"IEND") - 4
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = exif.tobytes()[6:]
    chunk = len(content).to_bytes(4, "big") + b"eXIf" + content
    chunk += zlib.crc32(chunk[4:]).to_bytes(4, "big")
    late = data[:end] + chunk + data[end:]
    assert probe_image(late) == read_image({"image": late}).size[::-1] == (180, 120)


BAD = {
    "text": (b"<html>404</html>" * 9, "cannot be opened as an image"),
    "empty": (b"", "cannot be opened as an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot be opened as an image"),
    "pdf": (b"%PDF-1.4\n", "cannot be opened as an image"),
    "data URL": ("data:image/png;base64,!!!", "damaged data URL"),
    "data URL without data": ("data:image/png", "damaged data URL"),
    "data URL of text": ("data:,text", "damaged data URL"),
    "number": (3, "is not a medium"),
    "none": (None, "is not a medium"),
    "dict": ({"bytes": b"x"}, "is not a medium"),
    "other scheme": ("s3://bucket/a.png", "no such file"),
}


@pytest.mark.parametrize(("source", "reason"), BAD.values(), ids=list(BAD))
def test_invalid_image_source_is_an_error(source, reason):
    with pytest.raises(MediaError, match=reason):
        probe_element({"type": "image", "image": source})
    with pytest.raises(MediaError, match=reason):
        read_image({"image": source})


NAMES = ["a\0b.png", "n" * 5000, "\ud800.png", "", "/dev/zero", "/dev/stdin", "/"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("kind", ["image", "video"])
def test_media_path_that_is_not_a_regular_file_is_never_opened(kind, name):
    with pytest.raises(MediaError, match=r"[Nn]o such file"):
        probe_element({"type": kind, kind: name})


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(MediaError, match=r"[Nn]o such file"):
        Source("image", json.dumps({"image": str(tmp_path / "pipe.png")}), 14).decode()


def test_image_with_too_many_declared_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 120 * 180 - 1)
    with pytest.raises(MediaError, match="180 x 120 pixels are more than 21599: make the image smaller"):
        probe_image(encoded("PNG"))


def test_media_deadline_applies_to_images(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG"))
    monkeypatch.setenv("VERL_P2R_MEDIA_TIMEOUT", "1e-9")
    for look in (probe_element, read_image):
        with pytest.raises(MediaError, match=r"a\.png: not read within 1e-09 s"):
            look({"image": str(path)})


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are `count`."""
    data = encoded("progressive JPEG")
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (count - data.count(b"\xff\xda") + 1) + data[-2:]


@pytest.mark.parametrize("scans", [10, 24, 100])
def test_scans_up_to_the_limit_are_read(scans):
    data = with_scans(scans)
    assert jpeg_scans(io.BytesIO(data)) == scans
    assert probe_image(data) == (120, 180)
    assert read_image({"image": data}).size == (180, 120)


@pytest.mark.parametrize("scans", [101, 5000])
def test_jpeg_with_too_many_scans_is_refused_before_decoding(scans):
    for read in (probe_image, lambda data: read_image({"image": data})):
        with pytest.raises(MediaError, match=rf"a JPEG with {scans} scans, more than 100, takes too long"):
            read(with_scans(scans))


def test_jpeg_scans_are_counted_across_block_borders(monkeypatch):
    data = with_scans(30)
    for block in (2, 3, 7, 64):
        monkeypatch.setattr(image_ends, "BLOCK", block)
        assert jpeg_scans(io.BytesIO(data)) == 30
    thumbnail = encoded("JPEG")  # its markers, inside the EXIF segment, are not counted
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    assert jpeg_scans(io.BytesIO(data[:2] + segment + data[2:])) == 30
