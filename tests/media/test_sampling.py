# SPDX-License-Identifier: Apache-2.0
"""Variable frame rates: which frames are taken and when they are shown, against the timestamps of each file."""

import random
from array import array
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from qwen_vl_utils import process_vision_info

from data_tools.look.pictures import pictures_of
from data_tools.media.parts import media_parts
from verl_p2r.data.record import Record
from verl_p2r.media.deadline import RulesError
from verl_p2r.media.decode import fetch_video, read_video
from verl_p2r.media.families import QWEN3_VL
from verl_p2r.media.plan import MediaError, VideoInfo, VisionSpec, plan_video
from verl_p2r.media.probe import probe_video
from verl_p2r.media.rules import EVALUATION, TRAINING, MediaSettings
from verl_p2r.media.sampling import sample_frames, video_metadata

QWEN3 = VisionSpec(QWEN3_VL, 16, 2, 2, None, None)
TICKS = {  # milliseconds between frames, in turn
    "quick then slow": [40] * 20 + [1600] * 10,
    "dropped frames": ([40] * 9 + [120]) * 4,
    "slides": [5000, 100, 3000, 8000, 700, 2500],
    "jumps": [20, 33, 100, 400] * 8,
    "long last frames": [100] * 10 + [9000] * 2,
}
ENDINGS = {"mp4": "libx264", "mkv": "libx264", "mov": "libx264", "webm": "libvpx", "flv": "libx264"}


def write(path, ticks, codec="libx264"):
    """Frame i is an even grey of about 16 + 4 i: a frame tells its index."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000  # greys four levels apart stay apart
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        time = 0
        for i, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 16 + 4 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
            time += tick
        container.mux(stream.encode())
    return str(path)


def true_times(path) -> list[float]:
    """When each frame is shown, by decoding all."""
    with av.open(path) as container:
        times = [frame.time for frame in container.decode(video=0)]
    return [time - times[0] for time in times]


def seen(frames) -> list[int]:
    """The indices that frames tell by their grey."""
    return [round((float(frame.float().mean()) - 16) / 4) for frame in frames]


@pytest.fixture(scope="module", params=[(name, ending) for name in TICKS for ending in ENDINGS], ids="-".join)
def variable(request, tmp_path_factory):
    name, ending = request.param
    return write(tmp_path_factory.mktemp("variable") / f"clip.{ending}", TICKS[name], ENDINGS[ending])


def test_metadata_gives_true_time_of_every_frame(variable):
    times = true_times(variable)
    element = TRAINING.fill({"type": "video", "video": variable, "resized_height": 56, "resized_width": 56})
    frames, metadata = fetch_video(element, 14)
    told = [index / metadata["fps"] for index in metadata["frames_indices"]]
    assert told == pytest.approx([times[i] for i in seen(frames)], abs=0.001)
    plan = plan_video(element, probe_video(variable), QWEN3)
    assert list(plan.indices) == seen(frames)
    middles = [(a + b) / 2 for a, b in zip(told[::2], told[1::2], strict=True)]
    assert plan.timestamps == pytest.approx(middles)


def test_sampled_frames_are_nearest_to_even_times(variable):
    times = true_times(variable)
    plan = plan_video(TRAINING.fill({"video": variable}), probe_video(variable), QWEN3)
    for k, index in enumerate(plan.indices):
        wanted = times[-1] * k / (len(plan.indices) - 1)
        assert abs(times[index] - wanted) <= min(abs(time - wanted) for time in times) + 0.001


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.8), (0.5, 6.0), (3.0, None), (None, 3.0)])
def test_video_start_and_end_follow_true_times_at_variable_rate(variable, start, end):
    times = true_times(variable)
    earliest, latest = (start or 0) - 0.0005, (1e9 if end is None else end) + 0.0005
    within = [i for i, time in enumerate(times) if earliest <= time <= latest]
    rules = {name: value for name, value in (("video_start", start), ("video_end", end)) if value is not None}
    element = {"video": variable, "fps": 4.0, "max_frames": 8, "min_frames": 2, **rules}
    if len(within) < 2:
        with pytest.raises(RulesError, match=r"sampling rules cannot be met: from .* it shows [01] frames"):
            read_video(element)
        return
    frames, metadata, sampled_fps = read_video(element)
    indices = seen(frames)
    assert (indices[0], indices[-1]) == (within[0], within[-1])
    ends = [*times, probe_video(variable).times[-1]]
    assert len(indices) / sampled_fps == pytest.approx(ends[within[-1] + 1] - times[within[0]], abs=0.002)
    assert len(indices) / metadata["total_num_frames"] * metadata["fps"] == pytest.approx(sampled_fps, rel=0.01)


def test_generation_and_view_show_same_frame_times(tmp_path):
    path = write(tmp_path / "clip.mp4", TICKS["quick then slow"])
    record = Record.parse(
        {"problem": "?", "problem_type": "free-form", "data_type": "video", "path": "clip.mp4", "solution": "x"}
    )
    times = true_times(path)
    plan = plan_video(TRAINING.fill({"video": path}), probe_video(path), QWEN3)
    parts, _ = media_parts(record, tmp_path, MediaSettings(), video_as="images")
    assert [part["text"] for part in parts[::2]] == [f"<{times[i]:.1f} seconds>" for i in plan.indices]
    _, body = media_parts(record, tmp_path, MediaSettings())
    sent = body["media_io_kwargs"]["video"]
    assert [i / sent["fps"] for i in sent["frames_indices"]] == pytest.approx([times[i] for i in plan.indices])
    assert all(isinstance(i, int) for i in [*sent["frames_indices"], sent["total_num_frames"]])  # vLLM insists
    shown = pictures_of({"video": path}, 4, 1 << 20)
    assert [picture.seconds for picture in shown.pictures] == pytest.approx(
        [times[plan.indices[i]] for i in (0, 5, 10, 15)]
    )


def test_qwen_vl_utils_and_fetch_video_return_same_frames(tmp_path):
    path = write(tmp_path / "clip.mp4", TICKS["jumps"])
    element = TRAINING.fill({"type": "video", "video": path, "resized_height": 56, "resized_width": 56})
    _, [(video, metadata)] = process_vision_info([{"content": [element]}], return_video_metadata=True)
    ours, our_metadata = fetch_video(element, 14)
    assert metadata == our_metadata
    assert seen(video) == seen(ours)


def test_time_based_sampling_equals_index_sampling_at_constant_rate():
    rng, compared = random.Random(0), 0
    for _ in range(400):
        fps = rng.choice([1.0, 5.0, 24000 / 1001, 25.0, 30.0, 60.0])
        info = VideoInfo(rng.randint(2, 900), fps, 60, 60)
        element = rng.choice([TRAINING, EVALUATION]).fill(
            {"video": "a.mp4", **rng.choice([{}, {"nframes": 6}, {"fps": 0.7}, {"video_start": 1.1, "video_end": 9.3}])}
        )
        timed = replace(info, times=array("d", [i / fps for i in range(info.frames + 1)]))
        try:
            constant = sample_frames(element, info)
        except RulesError:
            with pytest.raises(RulesError):
                sample_frames(element, timed)
            continue
        indices, total, sampled_fps = sample_frames(element, timed)
        assert (len(indices), total) == (len(constant[0]), constant[1])
        assert sampled_fps == pytest.approx(constant[2])
        positions = np.linspace(constant[0][0], constant[0][-1], len(indices))
        clear = np.abs(positions % 1 - 0.5) > 1e-3  # halfway between two frames either is the nearest
        assert np.array_equal(np.array(indices)[clear], np.array(constant[0])[clear])
        compared += 1
    assert compared > 300


@pytest.mark.parametrize(
    ("times", "constant"),
    [
        ([0, 0.04, 0.08, 0.12], True),
        ([1.40, 1.44, 1.48, 1.52], True),  # time starts with the first frame
        ([0, 0.033, 0.067, 0.1], True),  # 30 fps in milliseconds
        ([0, 0.05, 0.07, 0.12], True),  # a telephone's jitter, less than half a frame
        ([0, 0.04, 0.08, 0.5], False),
        ([0, 0.04, 0.12, 0.16], False),  # one was dropped
        ([0], True),
    ],
)
def test_rate_is_constant_if_every_frame_is_within_half_a_frame(times, constant):
    from verl_p2r.media.sampling import shown_times

    fps = 25.0 if times[:3] != [0, 0.033, 0.067] else 30.0
    found = shown_times(times, fps)
    assert (found is None) == constant
    if not constant:
        assert found[:-1].tolist() == pytest.approx(times)
        assert found[-1] > times[-1]


def test_avi_with_dropped_frames_has_variable_rate(tmp_path):
    """Capture programs write an empty packet for a frame that was dropped: the one before it stays."""
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        for i, pts in enumerate([0, 1, 2, 9, 10, 20]):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 16 + 4 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 10)
            container.mux(stream.encode(frame.reformat(format="yuvj420p")))
        container.mux(stream.encode())
    info = probe_video(str(path))
    assert info.frames == 6
    assert info.times[:-1].tolist() == pytest.approx([0, 0.1, 0.2, 0.9, 1.0, 2.0])


def test_concatenated_stream_with_untrustworthy_times_is_an_error(tmp_path):
    data = Path(write(tmp_path / "part.ts", [40] * 30)).read_bytes()
    (tmp_path / "joined.ts").write_bytes(data + data)
    with pytest.raises(MediaError, match=r"joined\.ts: the times of its frames cannot be trusted"):
        probe_video(str(tmp_path / "joined.ts"))


def test_constant_rate_metadata_equals_qwen_vl_utils():
    info = VideoInfo(100, 25.0, 60, 60)
    assert video_metadata(info, (0, 50, 99), 100, 0.75) == {
        "fps": 25.0,
        "frames_indices": [0, 50, 99],
        "total_num_frames": 100,
    }


RULES = [
    *({"fps": value} for value in ("2", float("nan"), float("inf"), 1e9, 1e300, [1], True, 0.0, -1.0)),
    *({"nframes": value} for value in (-2, 10**9, "4", 0, 1e300, float("nan"))),
    {"min_frames": 10**9, "max_frames": 10**9, "fps": 2.0},
    {"max_frames": 0, "fps": 2.0},
    *({"video_start": value} for value in (float("nan"), "1", 1e300, 99.0)),
    *({"video_end": value} for value in (float("inf"), "1", -1.0)),
    {"video_start": 3.0, "video_end": 1.0},
    *({"max_pixels": value} for value in (0, -1, "9", float("nan"))),
    {"max_pixels": 2**62, "min_pixels": 2**60},
    *({"resized_height": side, "resized_width": side} for side in (0, -28, 10**6, "56", float("inf"))),
    {"total_pixels": float("nan")},
    {"min_pixels": 1 << 33, "max_pixels": 1 << 34},
]


def test_media_rule_set_to_none_is_ignored(clips):
    info, path = probe_video(str(clips["quick"])), str(clips["quick"])
    none = dict.fromkeys(("nframes", "fps", "max_frames", "video_end", "resized_height", "min_pixels"))
    assert plan_video({"video": path, **none}, info, QWEN3) == plan_video({"video": path}, info, QWEN3)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_impossible_sampling_rules_raise_error_with_file(clips, rules):
    element = {"type": "video", "video": str(clips["quick"]), **rules}
    with pytest.raises(RulesError, match=r"quick\.mp4: its (sampling rules|size) cannot be met"):
        plan_video(element, probe_video(str(clips["quick"])), QWEN3)
    with pytest.raises(RulesError, match="cannot be met"):
        fetch_video(element, 16)
