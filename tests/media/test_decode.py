# SPDX-License-Identifier: Apache-2.0
"""The PyAV reader against decoding all frames and indexing: containers, codecs, rates, rotations and long files."""

import random
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from clip_files import all_frames, cut_start, look_at, write
from qwen_vl_utils import process_vision_info, vision_process

from verl_p2r.media import decode, frame_order
from verl_p2r.media.decode import (
    READER,
    decode_frames,
    install_reader,
    local_path,
    read_video,
)
from verl_p2r.media.plan import VideoInfo, sample_frames
from verl_p2r.media.probe import probe_video
from verl_p2r.media.rules import TRAINING

RULES = [
    {"fps": 2.0},
    {"fps": 1.0, "max_frames": 4},
    {"fps": 0.5, "min_frames": 6},
    {"nframes": 6},
    {"nframes": 7},  # rounded to even by qwen-vl-utils
    {},
    {"fps": 2.0, "min_frames": 2, "video_start": 0.5, "video_end": 2.5},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("clip", ["slow", "quick", "film", "odd"])
def test_read_frames_equal_decoding_all_frames_and_indexing(clips, clip, rules):
    path = clips[clip]
    if clip == "film" and "video_end" in rules:
        rules = {**rules, "video_start": 0.1, "video_end": 0.9}
    frames, metadata, sampled_fps = read_video({"video": str(path), **rules})

    everything, info = all_frames(path), probe_video(str(path))
    first, last, span = vision_process.calculate_video_frame_range(rules, info.frames, info.fps)
    count = vision_process.smart_nframes(rules, total_frames=span, video_fps=info.fps)
    indices = torch.linspace(first, last, count).round().long().tolist()
    assert info.frames == len(everything)
    assert metadata == {
        "fps": info.fps,
        "frames_indices": indices,
        "total_num_frames": span,
        "video_backend": READER,
    }
    assert frames.dtype == torch.uint8
    assert np.array_equal(frames.numpy(), everything[indices].transpose(0, 3, 1, 2))
    assert sampled_fps == pytest.approx(count / span * info.fps)


def test_sampled_frames_have_hand_computed_indices(clips):
    # Frame i of "quick" is grey 16 + 5 i: 8 frames at 4 fps read at 2 fps are frames 0, 2, 5, 7.
    frames, metadata, sampled_fps = read_video({"video": str(clips["quick"]), "fps": 2.0})
    assert metadata["frames_indices"] == [0, 2, 5, 7]
    assert [round((float(frame.float().mean()) - 16) / 5) for frame in frames] == [0, 2, 5, 7]
    assert frames.shape == (4, 3, 112, 112)
    assert sampled_fps == 2.0


def test_file_url_is_read_like_a_path(clips):
    by_path, by_url = (read_video({"video": f"{prefix}{clips['odd']}"}) for prefix in ("", "file://"))
    assert torch.equal(by_path[0], by_url[0])
    assert by_path[1:] == by_url[1:]
    assert local_path(f"file://{clips['odd']}") == str(clips["odd"])


# Container, codec and what is special: whether all their frames can be had by seeking.
KINDS = {
    "b-frames.mp4": ({}, True),
    "b-frames.mkv": ({}, True),
    "b-frames.ts": ({}, True),  # arrives before the key frame
    "b-frames.avi": ({}, False),  # numbered as they are stored
    "b-frames.vob": ({"codec": "mpeg2video", "bf": "2", "size": (144, 176)}, False),  # guesses times after a seek
    "bare.h264": ({}, False),  # has no times
    "fragments.mp4": ({"movflags": "frag_keyframe+empty_moov"}, True),
    "key-frames.mp4": ({"gop": 1}, True),
    "open-gop.mp4": ({"x264-params": "open-gop=1:bframes=4:keyint=12:min-keyint=12:scenecut=0"}, True),
    "no-key-frames.mp4": ({"x264-params": "intra-refresh=1:keyint=24"}, False),
    "variable-rate.mp4": ({"ticks": [20, 33, 100, 400]}, True),
    "variable-rate.mkv": ({"ticks": [20, 33, 100, 400]}, True),
    "turned.mp4": ({"turn": 90}, True),
    "hevc.mp4": ({"codec": "libx265", "x265-params": "open-gop=1:keyint=12:log-level=none"}, True),
    "vp9.webm": ({"codec": "libvpx-vp9", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}, True),
    "mpeg4.avi": ({"codec": "mpeg4", "bf": "2"}, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_seeking_returns_same_frames_as_counting(tmp_path, monkeypatch, kind):
    options, seekable = KINDS[kind]
    path = str(write(tmp_path / kind, **options))
    everything = all_frames(path)
    if "turn" in options:
        everything = np.rot90(everything, 1, axes=(1, 2))
    assert probe_video(path).frames == len(everything) == 120
    if seekable:  # then counting from the start is not even needed
        monkeypatch.setattr(decode, "in_order", lambda *_: iter(()))
    rng = random.Random(0)
    alone = [[i] for i in range(15, 120, 12)]
    for indices in [
        *alone,
        [119],
        [12],
        [0, 118],
        [11, 60, 61],
        *(sorted(rng.sample(range(20, 120), 2)) for _ in range(8)),
    ]:
        assert np.array_equal(decode_frames(path, indices), everything[indices]), indices


def test_frames_hidden_by_edit_list_are_not_counted(tmp_path):
    source = write(tmp_path / "whole.mp4")
    path = str(cut_start(tmp_path / "cut.mp4", source, 17))
    everything = all_frames(path)
    assert np.array_equal(everything, all_frames(source)[17:])
    assert probe_video(path).frames == 103
    assert np.array_equal(decode_frames(path, [0, 102]), everything[[0, 102]])


def test_frame_rate_and_count_are_read_from_container(clips):
    assert probe_video(str(clips["film"])) == VideoInfo(24, float(Fraction(24000, 1001)), 112, 112)
    assert probe_video(str(clips["odd"])) == VideoInfo(15, 5.0, 112, 112)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_fps_of_variable_rate_video_is_the_average(tmp_path, ending):
    # 120 frames, four of which take 553 ms; Matroska declares 30 fps. Its last frame has no end.
    info = probe_video(str(write(tmp_path / f"clip.{ending}", ticks=[20, 33, 100, 400])))
    assert info.frames == 120
    assert info.fps == pytest.approx({"mp4": 120 / (30 * 0.553), "mkv": 119 / (30 * 0.553 - 0.4)}[ending], rel=0.03)


def test_frames_are_counted_when_container_has_no_frame_count(tmp_path):
    path = str(write(tmp_path / "clip.mkv", 9, rate=10))
    with av.open(path) as container:
        assert container.streams.video[0].frames == 0
    assert probe_video(path) == VideoInfo(9, 10.0, 48, 64)
    assert len(read_video({"video": path, "nframes": 8})[0]) == 8


@pytest.mark.parametrize(
    ("turn", "corner"), [(0, (0, 0)), (90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))], ids=["0", "90", "-90", "180"]
)
def test_display_rotation_is_applied_to_frames(tmp_path, turn, corner):
    # The picture's upper left corner is red. Turned by 90 degrees against the clock it is the lower left one.
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = 60, 100, "yuv420p"
        if turn:
            stream.set_display_rotation(turn)
        picture = np.zeros((60, 100, 3), np.uint8)
        picture[:30, :50, 0] = 255
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    info = probe_video(str(path))
    frame = read_video({"video": str(path), "nframes": 4})[0][0]
    assert frame.shape[1:] == (info.height, info.width) == ((100, 60) if turn in (90, -90) else (60, 100))
    red = frame[0].float()
    quarters = red.unfold(0, info.height // 2, info.height // 2).unfold(1, info.width // 2, info.width // 2)
    bright = quarters.mean((2, 3)) > 200
    assert bright.sum() == 1
    assert bright[corner]


def test_phone_portrait_video_is_rotated_clockwise(tmp_path):
    # The matrix that telephones write into their files: x' = -y, y' = x.
    path = tmp_path / "clip.mp4"
    write(path, 4, turn=90)
    content = path.read_bytes()
    one = 0x10000
    there, portrait = (
        b"".join(n.to_bytes(4, "big", signed=True) for n in m) for m in ([0, -one, 0, one, 0], [0, one, 0, -one, 0])
    )
    assert content.count(there) == 1
    path.write_bytes(content.replace(there, portrait))
    assert np.array_equal(decode_frames(str(path), [3])[0], np.rot90(all_frames(path)[3], -1))


def test_odd_frame_sizes_are_decoded(tmp_path):
    path = str(write(tmp_path / "clip.mp4", 4, size=(63, 97), form="yuv444p"))
    assert probe_video(path) == VideoInfo(4, 30.0, 63, 97)
    assert np.array_equal(decode_frames(path, [0, 3]), all_frames(path)[[0, 3]])


def test_file_extension_does_not_affect_decoding(tmp_path, clips):
    path = tmp_path / "clip.jpg"
    path.write_bytes(clips["quick"].read_bytes())
    assert torch.equal(read_video({"video": str(path)})[0], read_video({"video": str(clips["quick"])})[0])


def test_frame_of_single_frame_video_is_repeated(make_clip):
    element = TRAINING.fill({"type": "video", "video": str(make_clip(1, 4))})
    look_at(element)
    frames, metadata, sampled_fps = read_video(element)
    assert metadata["frames_indices"] == [0, 0] == list(sample_frames(element, probe_video(element["video"]))[0])
    assert torch.equal(frames[0], frames[1])
    assert sampled_fps == 8.0
    install_reader()
    _, [(video, _)] = process_vision_info([{"content": [element]}], return_video_metadata=True)
    assert len(video) == 2


def test_four_hour_video_decodes_only_near_sampled_frames(tmp_path, monkeypatch):
    path = str(write(tmp_path / "long.mp4", 14400, "mpeg4", size=(32, 32), rate=1, gop=100))
    decoded = []
    by_seeking = frame_order._decode_from
    monkeypatch.setattr(frame_order, "_decode_from", lambda *a: (decoded.append(f.pts) or f for f in by_seeking(*a)))
    monkeypatch.setattr(decode, "in_order", lambda *_: iter(()))
    tracemalloc.start()
    frames, metadata, sampled_fps = read_video(TRAINING.fill({"video": path}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert metadata["frames_indices"] == [960 * i - (i > 7) for i in range(16)]  # 14399 / 15 i, rounded
    assert sampled_fps == pytest.approx(16 / 14400)
    assert len(decoded) <= 16 * 100
    assert peak < 8e6  # all frames are 44 MB
    with av.open(path) as container:
        wanted = set(metadata["frames_indices"])
        slow = [f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(video=0)) if i in wanted]
    assert np.array_equal(frames.numpy(), np.stack(slow).transpose(0, 3, 1, 2))
