# SPDX-License-Identifier: Apache-2.0
"""Screening finds each row that cannot work, for its own reason, and no other."""

import shutil

import av
import numpy as np
import pytest
from PIL import Image

from verl_p2r import screening
from verl_p2r.media import VideoInfo, VisionSpec
from verl_p2r.rows import RowError
from verl_p2r.screening import Limit, Medium, Sample, screen

SPEC = VisionSpec("qwen2_5_vl", 14, 2, 2, image_pixels=(3136, 12845056), video_pixels=(3136, 12845056))
VIDEO, IMAGE = "<|video_pad|>", "<|image_pad|>"


def words(text):
    """A tokenizer: one token a word, a placeholder being a word."""
    return {"input_ids": text.split()}


def video(path, **rules) -> Medium:
    return Medium("videos", {"type": "video", "video": str(path), "resized_height": 112, "resized_width": 112, **rules})


def found(rows, *, tokens: int = 1000, spec=SPEC) -> list[tuple[int, str, str]]:
    outcome = screen(rows, prepare, lambda i: ("rl.jsonl", 10 + i), Limit(tokens, "data.max_length", words, spec))
    assert outcome.total == len(rows)
    return [(reject.position, reject.reason, str(reject)) for reject in outcome.rejects]


def prepare(position, row) -> Sample:
    if isinstance(row, RowError):
        raise row
    return row


def test_good_rows_stay(clips, tmp_path):
    Image.new("RGB", (112, 112)).save(tmp_path / "a.png")
    rows = [
        Sample(f"a {VIDEO} b", (video(clips["quick"]),)),
        Sample(f"{IMAGE} {VIDEO}", (Medium("images", {"image": f"file://{tmp_path}/a.png"}), video(clips["odd"]))),
        Sample("text only"),
    ]
    assert found(rows) == []


def test_each_bad_row_has_its_own_reason_and_its_neighbours_stay(clips, tmp_path):
    # A peer marks the whole batch as failed for one bad sample.
    (tmp_path / "page.mp4").write_text("<html>404</html>")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.png").write_text("<html>404</html>")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:  # a video stream, and no frame in it
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 112
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
        container.mux(stream.encode())
    good = Sample(VIDEO, (video(clips["quick"]),))
    bad = {
        "missing file": Sample(VIDEO, (video(tmp_path / "gone.mp4"),)),
        "unreadable file": Sample(VIDEO, (video(tmp_path / "page.mp4"),)),
        "sampling rules": Sample(VIDEO, (video(clips["quick"], nframes=40),)),
        "placeholders": Sample(f"{VIDEO} {VIDEO}", (video(clips["quick"]),)),
        "no ground truth": RowError("solution", "no ground truth", "field solution is None"),
    }
    rows = [row for sample in bad.values() for row in (good, sample)] + [good]
    assert [(position, reason) for position, reason, _ in found(rows)] == [(2 * i + 1, r) for i, r in enumerate(bad)]
    others = [
        Sample(VIDEO, (video(tmp_path / "empty.mp4"),)),
        Sample(VIDEO, (video(tmp_path / "sound.mp4"),)),
        Sample(VIDEO, (video(tmp_path / "silent.mp4"),)),
        Sample(IMAGE, (Medium("images", {"image": str(tmp_path / "page.png")}),)),
    ]
    reasons = [reason for _, reason, _ in found(others)]
    assert len(reasons) == 4
    assert set(reasons) <= {"unreadable file", "no video frames"}


def test_a_reject_names_file_row_and_field(tmp_path):
    ((_, _, message),) = found([Sample(VIDEO, (video(tmp_path / "gone.mp4"),))])
    assert message.startswith(f"rl.jsonl row 10: field videos: {tmp_path}/gone.mp4: no such file")


def test_a_row_may_be_as_long_as_the_limit_and_no_longer(clips):
    # 8 frames of 112 x 112: 4 grids of 8 x 8 patches, 16 tokens each after merging. 64, and 3 words.
    row = Sample(f"one two {VIDEO} three", (video(clips["quick"], nframes=8),))
    assert found([row], tokens=67) == []
    ((_, reason, message),) = found([row], tokens=66)
    assert reason == "over-long"
    assert "its 67 tokens, 64 of them media, are more than data.max_length=66" in message


def test_pictures_in_memory_count(clips):
    row = Sample(f"{IMAGE} {VIDEO}", (Medium("images", {"image": Image.new("RGB", (56, 84))}), video(clips["quick"])))
    tokens = 2 * 3 + 32  # 2 x 3 squares of 28 pixels; 4 frames in 2 grids of 16
    assert found([row], tokens=tokens) == []
    assert [reason for _, reason, _ in found([row], tokens=tokens - 1)] == ["over-long"]


@pytest.mark.parametrize("source", ["https://host/a.mp4", ["/nowhere/1.png", "/nowhere/2.png"]])
def test_media_that_are_no_local_file_are_not_looked_at(source):
    assert found([Sample(VIDEO, (Medium("videos", {"type": "video", "video": source}),))], tokens=1) == []


def test_an_unknown_family_is_not_measured_but_its_media_are_read(clips, tmp_path):
    rows = [Sample(VIDEO, (video(clips["quick"]),)), Sample(VIDEO, (video(tmp_path / "gone.mp4"),))]
    assert [reason for _, reason, _ in found(rows, tokens=1, spec=None)] == ["missing file"]


def test_each_file_is_probed_once_for_all_its_rows(clips, tmp_path, monkeypatch):
    probed = []

    def counting(path):
        probed.append(path)
        return VideoInfo(8, 4.0, 112, 112)

    monkeypatch.setattr(screening, "probe_video", counting)
    monkeypatch.setattr(screening, "CHUNK", 3)
    shutil.copy(clips["quick"], tmp_path / "copy.mp4")
    rows = [Sample(VIDEO, (video(path, nframes=n),)) for n in (2, 4, 6, 8) for path in ("a.mp4", "b.mp4")]
    assert found(rows) == []
    assert sorted(probed) == ["a.mp4", "b.mp4"]


def test_whatever_a_file_does_to_its_library_is_that_files_fault_alone(clips, monkeypatch):
    real = screening.probe_video

    def failing(path):
        if path == str(clips["odd"]):
            raise ZeroDivisionError("fps")
        return real(path)

    monkeypatch.setattr(screening, "probe_video", failing)
    rows = [Sample(VIDEO, (video(clips[name]),)) for name in ("quick", "odd", "slow")]
    ((position, reason, message),) = found(rows)
    assert (position, reason) == (1, "unreadable file")
    assert "cannot be read (ZeroDivisionError: fps)" in message
