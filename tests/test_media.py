# SPDX-License-Identifier: Apache-2.0
"""The PyAV reader against decoding everything, qwen-vl-utils' own rules, and files that are no videos."""

import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import vision_process

from verl_p2r.media import READER, MediaError, check_image, check_video, install_reader, probe_video, read_video


def all_frames(path) -> np.ndarray:
    """Every frame of a file, decoded without a thought. Shape: (T, 3, H, W)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).transpose(0, 3, 1, 2)


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

    everything, (total, fps) = all_frames(path), probe_video(str(path))
    first, last, span = vision_process.calculate_video_frame_range(rules, total, fps)
    count = vision_process.smart_nframes(rules, total_frames=span, video_fps=fps)
    indices = torch.linspace(first, last, count).round().long().tolist()
    assert total == len(everything)
    assert metadata == {
        "fps": fps,
        "frames_indices": indices,
        "total_num_frames": span,
        "video_backend": READER,
    }
    assert frames.dtype == torch.uint8
    assert np.array_equal(frames.numpy(), everything[indices])
    assert sampled_fps == pytest.approx(count / span * fps)


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


def test_rate_and_length_come_from_the_container(clips):
    assert probe_video(str(clips["film"])) == (24, float(Fraction(24000, 1001)))
    assert probe_video(str(clips["odd"])) == (15, 5.0)


def test_a_container_without_a_frame_count_is_counted(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 112
        for i in range(9):
            picture = np.full((112, 112, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    assert probe_video(str(path)) == (9, 10.0)
    assert len(read_video({"video": str(path), "nframes": 8})[0]) == 8


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
        "damaged": whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
    }
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return folder


BAD = {
    "cut": "truncated: it has",
    "cut-index": "cannot be opened as a video",
    "empty": "cannot be opened as a video",
    "text": "cannot be opened as a video",
    "audio": "no video stream",
    "missing": "no such file",
}


@pytest.mark.parametrize(("name", "reason"), BAD.items(), ids=list(BAD))
@pytest.mark.parametrize("reader", [read_video, check_video])
def test_a_file_that_is_no_video_is_an_error_that_names_it(bad_files, reader, name, reason):
    path = str(bad_files / f"{name}.mp4")
    with pytest.raises(MediaError, match=reason) as caught:
        reader({"video": path})
    assert str(caught.value).startswith(path)


def test_damage_behind_the_first_frame_is_found_when_it_is_read(bad_files):
    path = str(bad_files / "damaged.mp4")
    check_video({"video": path})  # as far as a look at one frame goes
    with pytest.raises(
        MediaError, match=r"frame \d+ of 16 cannot be decoded: the file is truncated or corrupt"
    ) as caught:
        read_video({"video": path, "nframes": 16})
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize("reader", [read_video, check_video])
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


def test_a_video_of_one_frame_is_too_short(make_clip):
    with pytest.raises(MediaError, match="sampling rules"):
        check_video({"video": str(make_clip(1, 4))})


def test_images(tmp_path):
    Image.new("RGB", (30, 30)).save(tmp_path / "good.png")
    check_image({"image": str(tmp_path / "good.png")})
    check_image({"image": f"file://{tmp_path / 'good.png'}"})
    (tmp_path / "text.png").write_text("not an image")
    for name in ("text.png", "missing.png"):
        with pytest.raises(MediaError, match="cannot be opened as an image") as caught:
            check_image({"image": str(tmp_path / name)})
        assert str(caught.value).startswith(str(tmp_path / name))


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


@pytest.mark.slow
@pytest.mark.parametrize(("forced", "expected"), [(None, "pyav"), ("decord", "decord")])
def test_a_reader_the_user_forces_stays_in_force(forced, expected):
    program = """
import verl_p2r.plugin
from qwen_vl_utils import vision_process  # before us: it reads the variable at import
from verl_p2r.media import install_reader, read_video
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
