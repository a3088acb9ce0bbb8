# SPDX-License-Identifier: Apache-2.0
"""620 damaged files of each seed: nothing but a `MediaError` comes out, in time; and what a cut file keeps decodes."""

import io
import random
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from verl_p2r.media.deadline import TIMEOUT_VARIABLE
from verl_p2r.media.decode import fetch_video
from verl_p2r.media.images import fetch_image
from verl_p2r.media.plan import MediaError
from verl_p2r.media.probe import probe_element

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow says what is damaged

VIDEOS = {  # container: codec, and options of the container
    "mp4": ("libx264", {}),
    "faststart.mp4": ("libx264", {"movflags": "faststart"}),
    "fragments.mp4": ("libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "mov": ("mpeg4", {}),
    "mkv": ("libx264", {}),
    "webm": ("libvpx", {}),
    "avi": ("mpeg4", {}),
    "mjpeg.avi": ("mjpeg", {}),
    "ts": ("libx264", {}),
    "vob": ("mpeg2video", {}),
    "flv": ("flv1", {}),
    "wmv": ("wmv2", {}),
    "gif": ("gif", {}),
}
IMAGES = {
    "jpeg": {},
    "progressive.jpeg": {"progressive": True},
    "png": {},
    "gif": {},
    "webp": {},
    "lossless.webp": {"lossless": True},
    "tiff": {},
    "lzw.tiff": {"compression": "tiff_lzw"},
    "bmp": {},
}
FILES = 620
TIMEOUT = 20  # seconds a file may take at most; none is near it
PIXEL_FORMATS = {"mjpeg": "yuvj420p", "gif": "rgb8"}


def video_bytes(folder: Path, name: str, frames: int = 24) -> bytes:
    codec, options = VIDEOS[name]
    rng, file = np.random.default_rng(0), folder / name
    form = {"mkv": "matroska", "ts": "mpegts", "wmv": "asf", "vob": "vob"}.get(end := name.split(".")[-1], end)
    with av.open(str(file), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, PIXEL_FORMATS.get(codec, "yuv420p")
        stream.codec_context.gop_size = 8
        stream.codec_context.thread_count = 1
        for _ in range(frames):
            tiles = rng.integers(0, 255, (18, 22, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            frame = av.VideoFrame.from_ndarray(tiles, format="rgb24").reformat(format=stream.pix_fmt)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.read_bytes()


def image_bytes(name: str) -> bytes:
    tiles = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
    file = io.BytesIO()
    Image.fromarray(tiles).save(file, name.split(".")[-1], **IMAGES[name])
    return file.getvalue()


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Bytes of a file with some changed, swapped, repeated or left out."""
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 3, 10, 60])):
        at, size = rng.randrange(len(data)), rng.choice([1, 2, 4, 8, 64])
        match rng.randrange(5):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at : at + size] = rng.randbytes(size)
            case 2:
                data[at : at + size] = rng.choice([b"\0", b"\xff", b"\x7f"]) * size
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size]
        data = data or bytearray(whole)
    return bytes(data)


def look(kind: str, data: bytes) -> str:
    """What happens to a file: `kept`, `refused` at the start, or `lost` when it is read."""
    element = {kind: data} if kind == "image" else {kind: data, "nframes": 4, "max_pixels": 56 * 56, "min_pixels": 784}
    try:
        probe_element(element)
    except MediaError:
        return "refused"
    try:
        (fetch_image if kind == "image" else fetch_video)(element, 14)
    except MediaError as error:
        return "kept" if "sampling rules cannot be met" in str(error) else "lost"
    return "kept"


@pytest.fixture(scope="module")
def wholes(tmp_path_factory) -> list[tuple[str, str, bytes]]:
    """Kind, name and content of undamaged files."""
    folder = tmp_path_factory.mktemp("whole")
    videos = [("video", name, video_bytes(folder, name)) for name in VIDEOS]
    return videos + [("image", name, image_bytes(name)) for name in IMAGES]


def test_undamaged_media_files_pass_fuzz_check(wholes):
    assert {name: look(kind, data) for kind, name, data in wholes} == {name: "kept" for _, name, _ in wholes}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_damaged_media_files_are_either_refused_or_read(wholes, monkeypatch, seed):
    monkeypatch.setenv(TIMEOUT_VARIABLE, str(TIMEOUT))
    rng, outcomes = random.Random(seed), Counter()
    for i in range(FILES):
        kind, _, data = wholes[i % len(wholes)]
        outcomes[look(kind, damaged(data, rng))] += 1
    assert outcomes.total() == FILES
    assert min(outcomes["refused"], outcomes["kept"]) > FILES // 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_truncated_media_file_that_passes_probe_decodes(wholes, seed):
    rng, lost = random.Random(seed), []
    for i in range(FILES):
        kind, name, data = wholes[i % len(wholes)]
        cut = rng.choice([rng.randrange(len(data)), len(data) - rng.randrange(1, 64)])
        if look(kind, data[: max(cut, 0)]) == "lost":
            lost.append((name, cut, len(data)))
    assert lost == []
