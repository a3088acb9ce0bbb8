# SPDX-License-Identifier: Apache-2.0
"""One medium in every shape that people write it in, read into one; what cannot be read is one named error."""

import math
import os
from base64 import b64encode
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from verl_p2r.data.elements import ANYWHERE, OUTSIDE, URL, MediaSources, kind_of, names_medium, read_element
from verl_p2r.data.errors import RowError
from verl_p2r.data.values import shown

PNG = b"\x89PNG"
ENCODED = b64encode(PNG).decode()
VIDEO = {"type": "video", "video": "a.mp4"}
IMAGE = {"type": "image", "image": "a.png"}
BYTES = {"type": "image", "image": PNG}

SHAPES = [
    # paths
    ("video", "a.mp4", VIDEO),
    ("video", Path("a.mp4"), VIDEO),
    ("video", "file:///d/a.mp4", {"type": "video", "video": "/d/a.mp4"}),
    ("video", "FILE://localhost/d/a.mp4", {"type": "video", "video": "/d/a.mp4"}),
    ("video", np.str_("a.mp4"), VIDEO),
    # verl's and qwen-vl-utils' elements
    ("video", {"video": "a.mp4"}, VIDEO),
    ("video", {"type": "video", "video": "a.mp4", "fps": 2.0}, {**VIDEO, "fps": 2.0}),
    ("image", {"image": "a.png", "max_pixels": 50176, "extra": "kept elsewhere"}, {**IMAGE, "max_pixels": 50176}),
    # numbers
    ("video", {**VIDEO, "fps": "2", "nframes": None}, {**VIDEO, "fps": 2.0}),
    ("video", {**VIDEO, "fps": math.nan, "nframes": 4.0}, {**VIDEO, "nframes": 4}),
    ("video", {**VIDEO, "fps": pd.NA, "max_frames": Decimal(8)}, {**VIDEO, "max_frames": 8}),
    (
        "video",
        {**VIDEO, "video_start": 0, "video_end": np.float64(1.5)},
        {**VIDEO, "video_start": 0.0, "video_end": 1.5},
    ),
    # Hugging Face's Image and Video
    ("image", {"bytes": PNG, "path": None}, BYTES),
    ("image", {"bytes": PNG, "path": "a.png"}, BYTES),
    ("image", {"bytes": None, "path": "a.png"}, IMAGE),
    ("video", {"bytes": None, "path": "a.mp4"}, VIDEO),
    ("image", {"image": {"bytes": PNG, "path": None}}, BYTES),
    # encoded files
    ("image", PNG, BYTES),
    ("image", bytearray(PNG), BYTES),
    ("image", {"image": PNG}, BYTES),
    ("image", {"base64": ENCODED}, BYTES),
    ("image", f"data:image/png;base64,{ENCODED}", BYTES),
    ("image", f"DATA:image/png;BASE64,{ENCODED}", BYTES),
    ("image", "data:,%89PNG", BYTES),
    # OpenAI's and transformers' content parts
    ("image", {"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}}, IMAGE),
    ("image", {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ENCODED}"}}, BYTES),
    ("image", {"type": "input_image", "image_url": "a.png"}, IMAGE),
    ("video", {"type": "video_url", "video_url": {"url": "a.mp4"}, "fps": 1.0}, {**VIDEO, "fps": 1.0}),
    ("video", {"type": "video", "path": "a.mp4"}, VIDEO),
    ("video", {"type": "video", "url": "a.mp4", "video": None}, VIDEO),
    # lists of frames
    ("video", ["0.png", "1.png"], {"type": "video", "video": ["0.png", "1.png"]}),
    ("video", {"video": ["0.png"], "sample_fps": 1}, {"type": "video", "video": ["0.png"], "sample_fps": 1.0}),
    ("video", np.array(["0.png", "1.png"], object), {"type": "video", "video": ["0.png", "1.png"]}),
    ("video", [{"path": "0.png", "bytes": None}], {"type": "video", "video": ["0.png"]}),
]


@pytest.mark.parametrize(("kind", "value", "element"), SHAPES, ids=lambda value: shown(value, 40))
def test_every_media_shape_is_read_as_same_element(kind, value, element):
    read = read_element(value, kind, "media")
    assert read == element
    assert {name: type(item) for name, item in read.items()} == {name: type(item) for name, item in element.items()}
    assert read_element(read, kind, "media") == read


def test_in_memory_image_is_kept_as_is():
    picture = Image.new("RGB", (2, 2))
    assert read_element(picture, "image", "images")["image"] is picture
    assert read_element({"image": picture, "min_pixels": 4}, "image", "images") == {
        "type": "image",
        "image": picture,
        "min_pixels": 4,
    }


BAD = [
    ("video", None, "no media", "holds an empty video"),
    ("video", math.nan, "bad media", "give a path"),
    ("video", "", "no media", "holds '' for a path"),
    ("video", "nan", "no media", "holds 'nan' for a path"),
    ("video", [], "no media", "holds an empty video"),
    ("video", {}, "no media", "without a path in 'video'"),
    ("video", {"vidoe": "a.mp4"}, "no media", "holds {'vidoe': 'a.mp4'}, without a path in 'video'"),
    ("image", {"bytes": None, "path": None}, "no media", "without a path in 'image'"),
    ("image", {"type": "image_url", "image_url": {"detail": "auto"}}, "no media", "without a path"),
    ("image", {"type": "input_image", "file_id": "file-1"}, "no media", "without a path"),
    ("image", b"", "no media", "holds an empty image"),
    ("image", ["a.png"], "bad media", "give a path or an encoded file"),
    ("image", 3, "bad media", "3 is not an image"),
    ("video", 10**5000, "bad media", "an int that is too long to show is not a video"),
    ("video", True, "bad media", "True is not a video"),
    ("video", {"a"}, "bad media", "is not a video"),
    ("video", np.zeros((1, 2, 2, 3)), "bad media", "is not an image"),
    ("video", [b"\x89PNG"], "bad media", "is a frame that is not a local file"),
    ("video", ["0.png", 3], "bad media", "3 is not an image"),
    ("video", {"video": "a.mp4", "path": "b.mp4"}, "bad media", "names its video under path and video"),
    ("video", {"type": "image", "video": "a.mp4"}, "bad media", "has the type 'image': give 'video'"),
    ("video", {"type": ["video"], "video": "a.mp4"}, "bad media", r"has the type \['video'\]"),
    ("video", {**VIDEO, "max_frame": 8}, "bad media", "holds 'max_frame': did you mean 'max_frames'?"),
    ("video", {**VIDEO, "fps": "fast"}, "bad media", "field media.fps is 'fast': give a number above 0"),
    ("video", {**VIDEO, "fps": 0.0}, "bad media", "field media.fps is 0.0: give a number above 0"),
    ("video", {**VIDEO, "nframes": [4]}, "bad media", r"field media.nframes is \[4\]: give a whole number"),
    ("image", {**IMAGE, "min_pixels": -1}, "bad media", "field media.min_pixels is -1: give a whole number above 0"),
    ("image", "data:image/png;base64,!!!", "bad media", "is a data: URL that cannot be read"),
    ("image", "data:image/png;base64,", "bad media", "is a data: URL without data"),
    ("image", "data:image/png", "bad media", "is a data: URL without data"),
    ("image", {"base64": "é"}, "bad media", "is a data: URL that cannot be read"),
    ("video", "https://host/a.mp4", URL, "download the file, or set data.p2r.allow_urls"),
    ("video", {"video": "HTTP://host/a.mp4", "allow_urls": True}, URL, "allow_urls"),
    ("video", ["https://host/0.png"], URL, "allow_urls"),
    ("video", "s3://bucket/a.mp4", URL, "give the path of a local file"),
    ("video", "file://http://host/a.mp4", URL, "give the path of a local file"),
]


@pytest.mark.parametrize(("kind", "value", "reason", "message"), BAD, ids=lambda value: shown(value, 40))
def test_unreadable_medium_is_one_error_with_field_and_reason(kind, value, reason, message):
    with pytest.raises(RowError, match=message) as caught:
        read_element(value, kind, "media")
    assert (caught.value.field, caught.value.reason) == ("media", reason)
    str(caught.value).encode()


def test_allowed_url_is_read_and_marked_in_element():
    allowed = MediaSources(allow_urls=True)
    element = {"type": "image", "image": "https://host/a.png", "allow_urls": True}
    assert read_element("HTTPS://host/a.png", "image", "images", allowed) == element
    assert read_element(element, "image", "images", allowed) == element
    assert read_element("a.png", "image", "images", allowed) == IMAGE


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of media with a link that leads out of it, and one that does not."""
    root = tmp_path / "media"
    (root / "inside").mkdir(parents=True)
    (tmp_path / "media2").mkdir()
    (tmp_path / "outside.mp4").touch()
    (root / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (root / "folder").symlink_to(tmp_path)
    (root / "own.mp4").symlink_to("inside/a.mp4")
    (tmp_path / "root").symlink_to(root)
    return root


INSIDE = ["a.mp4", "./inside/a.mp4", "inside/../a.mp4", "own.mp4", "~/a.mp4", "concat:/etc/passwd", " /etc/passwd"]
INSIDE += ["a\0b", "\ud800", "n" * 300, "C:\\a.mp4", "..."]


@pytest.mark.parametrize("name", ["media", "root"])
@pytest.mark.parametrize("path", INSIDE)
def test_element_paths_are_joined_to_media_root(root, name, path):
    sources = MediaSources(str(root.parent / name))
    read = read_element(path, "video", "videos", sources)["video"]
    assert read == os.path.join(root.parent / name, path.removeprefix("./"))
    assert read_element(read, "video", "videos", sources)["video"] == read  # an absolute path below the root is fine


LEAVING = ["../outside.mp4", "inside/../../outside.mp4", "/etc/passwd", "file:///etc/passwd", "link.mp4", ".."]
LEAVING += ["folder/outside.mp4", "//etc/passwd", "../media2/a.mp4", "folder/n" + "n" * 300, "../a\0b"]


@pytest.mark.parametrize("path", LEAVING)
def test_element_paths_outside_media_root_are_refused_unless_allowed(root, path):
    for value in (path, [path]):
        with pytest.raises(RowError, match=f"outside the media root {root}") as caught:
            read_element(value, "video", "videos", MediaSources(str(root)))
        assert caught.value.reason == OUTSIDE
    allowed = MediaSources(str(root), allow_outside_root=True)
    assert read_element(path, "video", "videos", allowed)["video"] == os.path.join(root, path.removeprefix("file://"))
    assert read_element(path, "video", "videos", ANYWHERE)["video"] == path.removeprefix("file://")


def test_content_part_kind_is_recognised():
    kinds = {
        "image": "image",
        "input_image": "image",
        "image_url": "image",
        "video_url": "video",
        "text": None,
        None: None,
    }
    assert {named: kind_of({"type": named}) for named in kinds} == kinds
    assert not names_medium({"type": "image"}, "image")
    assert not names_medium({"type": "image", "image": None}, "image")
    assert names_medium({"type": "image", "url": "a.png"}, "image")


def test_media_rules_inside_nested_mapping_are_refused():
    with pytest.raises(RowError, match="holds fps, video_end inside 'video': write them next to it") as error:
        read_element({"video": {"path": "a.mp4", "fps": 1, "video_end": 5}}, "video", "videos")
    assert error.value.reason == "bad media"
