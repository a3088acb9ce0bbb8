# SPDX-License-Identifier: Apache-2.0
"""Decoded frames on disk: every value comes back, keys change with what decides the frames, damage is found."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from frame_cache_entries import METADATA, files, key_of, noise

from verl_p2r.media import frame_cache
from verl_p2r.media.decode import install_reader
from verl_p2r.media.frame_cache import FrameCache


@pytest.fixture(autouse=True, scope="module")
def reader():
    install_reader()  # here: the processes that the tests start import this file where torchvision may not load


@pytest.fixture
def cache(tmp_path) -> FrameCache:
    return FrameCache(tmp_path / "deep" / "cache", max_bytes=10**9)


GRADIENT = torch.arange(3 * 28 * 84, dtype=torch.int64).remainder(256).to(torch.uint8).view(1, 3, 28, 84)
FRAMES = {
    "noise": noise(0, 16, 3, 56, 84),
    "gradient": GRADIENT,
    "black": torch.zeros(2, 3, 28, 28, dtype=torch.uint8),
    "white": torch.full((2, 3, 28, 28), 255, dtype=torch.uint8),
    "extremes": (noise(1, 4, 3, 28, 28) > 127).to(torch.uint8) * 255,
    "one-pixel": noise(2, 1, 3, 1, 1),
    "one-row": noise(3, 5, 3, 1, 28),
    "not-contiguous": noise(4, 4, 28, 56, 3).permute(0, 3, 1, 2),
    "strided": noise(5, 8, 3, 56, 56)[::2, :, ::2, 1::3],
}


@pytest.mark.parametrize("frames", FRAMES.values(), ids=list(FRAMES))
def test_cached_frames_and_metadata_come_back_unchanged(cache, frames):
    before = frames.clone()
    cache.put(key_of(1), frames, METADATA)
    assert torch.equal(frames, before)  # the caller's frames are only read
    found, metadata = cache.get(key_of(1))
    assert found.dtype == torch.uint8
    assert torch.equal(found, frames)
    assert metadata == METADATA
    assert metadata["fps"].hex() == METADATA["fps"].hex()
    found += 1  # what it gave is the caller's own
    assert torch.equal(cache.get(key_of(1))[0], frames)


def test_key_never_cached_is_missing(cache):
    cache.put(key_of(1), noise(0), METADATA)
    assert cache.get(key_of(2)) is None


def test_second_process_reads_cached_frames(cache, tmp_path):
    cache.put(key_of(1), noise(0), METADATA)
    script = (
        "import sys; from verl_p2r.media.frame_cache import FrameCache\n"
        "frames, metadata = FrameCache(sys.argv[1], 10**9).get(sys.argv[2])\n"
        "print(frames.long().sum().item(), metadata['frames_indices'])"
    )
    folder = str(tmp_path / "deep" / "cache")
    done = subprocess.run([sys.executable, "-c", script, folder, key_of(1)], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == [str(noise(0).long().sum().item()), "[0, 7, 15]\n"]


def test_qwen_vl_utils_frames_are_whole_numbers(make_clip):
    # So that keeping them as uint8 loses nothing: qwen-vl-utils resizes uint8 and hands it out as float32.
    from qwen_vl_utils.vision_process import fetch_video

    frames = fetch_video({"video": str(make_clip(8, 4)), "resized_height": 84, "resized_width": 168})
    assert frames.dtype == torch.float32
    assert torch.equal(frames.to(torch.uint8).float(), frames)


def test_cache_entry_is_much_smaller_than_float32_frames(cache, tmp_path):
    # A picture of soft shapes with a camera's noise; EasyVideoR1 keeps float32.
    rows, columns = torch.meshgrid(torch.linspace(0, 6, 224), torch.linspace(0, 9, 448), indexing="ij")
    planes = [(rows * a).sin() * (columns * b).cos() for a, b in ((1.0, 1.0), (1.1, 1.0), (1.0, 0.9))]
    picture = 128 + 80 * torch.stack(planes) + torch.randn(4, 3, 224, 448, generator=torch.manual_seed(0))
    cache.put(key_of(1), picture.clamp(0, 255).to(torch.uint8), METADATA)
    [entry] = files(tmp_path)
    assert entry.stat().st_size < picture.nbytes / 8
    assert picture.dtype == torch.float32


# --- the key ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"not read for its key")
    return path


def test_cache_key_is_same_for_every_spelling_of_path(clip, tmp_path):
    (tmp_path / "link.mp4").symlink_to(clip)
    names = [str(clip), f"file://{clip}", str(tmp_path / "." / "clip.mp4"), str(tmp_path / "link.mp4")]
    keys = {FrameCache.key({"type": "video", "video": name, "fps": 2.0}, 14) for name in names}
    assert len(keys) == 1
    assert len(keys.pop()) == 64


def test_irrelevant_fields_do_not_change_cache_key(clip):
    element = {"video": str(clip), "fps": 2.0, "max_frames": 16}
    assert FrameCache.key({"max_frames": 16, **element, "type": "video"}, 14) == FrameCache.key(element, 14)
    assert FrameCache.key({**element, "nframes": None}, 14) == FrameCache.key(element, 14)
    assert FrameCache.key({**element, "max_frames": np.int64(16)}, 14) == FrameCache.key(element, 14)


RULES = [
    {"fps": 1.0},
    {"nframes": 8},
    {"min_frames": 8},
    {"max_frames": 8},
    {"video_start": 1.0},
    {"video_end": 1.0},
    {"min_pixels": 784},
    {"max_pixels": 784},
    {"total_pixels": 784},
    {"resized_height": 56},
    {"resized_width": 56},
]


def test_every_sampling_rule_changes_cache_key(clip):
    plain = {"video": str(clip)}
    keys = [FrameCache.key({**plain, **rule}, 14) for rule in [{}, *RULES]] + [FrameCache.key(plain, 16)]
    assert len(set(keys)) == len(RULES) + 2


def test_changed_file_changes_cache_key(clip, tmp_path):
    element = {"video": str(clip)}
    first = FrameCache.key(element, 14)
    stat = clip.stat()
    os.utime(clip, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    touched = FrameCache.key(element, 14)
    clip.write_bytes(b"longer than it was before it changed")
    os.utime(clip, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    grown = FrameCache.key(element, 14)
    other = tmp_path / "other.mp4"
    shutil.copy2(clip, other)
    assert len({first, touched, grown, FrameCache.key({"video": str(other)}, 14)}) == 4


def test_changed_library_settings_or_version_change_cache_key(clip, monkeypatch):
    from qwen_vl_utils import vision_process

    keys = {FrameCache.key({"video": str(clip)}, 14)}
    for name, value in (("MODEL_SEQ_LEN", 4096), ("FPS_MAX_FRAMES", 8), ("FORCE_QWENVL_VIDEO_READER", "decord")):
        with monkeypatch.context() as patch:
            patch.setattr(vision_process, name, value)
            keys.add(FrameCache.key({"video": str(clip)}, 14))
    frame_cache._code.cache_clear()
    monkeypatch.setattr(frame_cache, "version", lambda name: "0.0")
    keys.add(FrameCache.key({"video": str(clip)}, 14))
    frame_cache._code.cache_clear()
    assert len(keys) == 5


def test_cache_key_of_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        FrameCache.key({"video": str(tmp_path / "gone.mp4")}, 14)


# --- damage ----------------------------------------------------------------------------------------------------------


def damage(entry: Path, kind: str) -> None:
    content = entry.read_bytes()
    middle = len(content) // 2
    entry.write_bytes(
        {
            "empty": b"",
            "one-byte": content[:1],
            "half": content[:middle],
            "last-byte-missing": content[:-1],
            "first-byte-missing": content[1:],
            "zeros": bytes(len(content)),
            "more": content + b"\0",
            "page": b"<html>504 Gateway Time-out</html>",
        }[kind]
    )


KINDS = ["empty", "one-byte", "half", "last-byte-missing", "first-byte-missing", "zeros", "more", "page"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_cache_entry_is_missing_and_rewritten(cache, tmp_path, kind):
    cache.put(key_of(1), noise(0), METADATA)
    [entry] = files(tmp_path)
    damage(entry, kind)
    with pytest.warns(UserWarning, match=rf"{entry}: damaged \(.*the entry rewritten"):
        assert cache.get(key_of(1)) is None
    cache.put(key_of(1), noise(0), METADATA)
    assert files(tmp_path) == [entry]
    assert torch.equal(cache.get(key_of(1))[0], noise(0))


def test_flipped_bits_in_cache_entry_are_detected(cache, tmp_path):
    cache.put(key_of(1), GRADIENT, METADATA)
    [entry] = files(tmp_path)
    content = entry.read_bytes()
    rng = random.Random(0)
    places = [*range(40), *rng.sample(range(len(content)), 200), *range(len(content) - 8, len(content))]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        entry.write_bytes(flipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = cache.get(key_of(1))
        # zstd's own header has a bit that no decoder reads.
        assert found is None or (torch.equal(found[0], GRADIENT) and found[1] == METADATA)


def test_directory_in_place_of_entry_stops_cache_writes(cache, tmp_path):
    cache.put(key_of(1), noise(0), METADATA)
    [entry] = files(tmp_path)
    entry.unlink()
    entry.mkdir()
    with pytest.warns(UserWarning, match="cannot be read"):
        assert cache.get(key_of(1)) is None
    with pytest.warns(UserWarning, match="no more frames are cached"):
        cache.put(key_of(1), noise(0), METADATA)
    assert files(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get)
def test_full_disk_warns_once_and_makes_cache_read_only(cache, tmp_path, monkeypatch, number):
    cache.put(key_of(1), noise(1), METADATA)

    def half_written(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.warns(UserWarning, match=os.strerror(number)):
        cache.put(key_of(2), noise(2), METADATA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put(key_of(3), noise(3), METADATA)
    assert len(files(tmp_path)) == 1  # nor is the half left behind
    assert torch.equal(cache.get(key_of(1))[0], noise(1))
    assert cache.get(key_of(2)) is None


@pytest.mark.parametrize(
    ("frames", "metadata", "reason"),
    [(noise(0).float(), METADATA, "frames are torch.float32"), (noise(0), {"fps": torch.tensor(2.0)}, "Tensor")],
    ids=["float", "tensor-in-metadata"],
)
def test_unsupported_frames_or_metadata_are_refused_by_cache(cache, frames, metadata, reason):
    with pytest.raises(TypeError, match=reason):
        cache.put(key_of(1), frames, metadata)


def test_cached_metadata_equals_qwen_vl_utils_metadata(cache, make_clip):
    from qwen_vl_utils.vision_process import fetch_video

    element = {"type": "video", "video": str(make_clip(15, 5)), "fps": 2.0, "max_frames": 4}
    frames, metadata = fetch_video(element, return_video_metadata=True)
    key = FrameCache.key(element, 14)
    cache.put(key, frames.to(torch.uint8), metadata)
    found, same = cache.get(key)
    assert torch.equal(found.float(), frames)
    assert json.dumps(same) == json.dumps(metadata)
    assert {name: type(value) for name, value in same.items()} == {name: type(v) for name, v in metadata.items()}
