# SPDX-License-Identifier: Apache-2.0
"""Screening finds each row that cannot work, for its own reason, and no other."""

import shutil
from decimal import Decimal

import av
import numpy as np
import pytest
from PIL import Image

from verl_p2r.data import screening
from verl_p2r.data.errors import RowError
from verl_p2r.data.screening import Limit, RowMedium, Sample, media_in, screen
from verl_p2r.media import probe
from verl_p2r.media.families import QWEN2_5_VL
from verl_p2r.media.plan import VideoInfo, VisionSpec

SPEC = VisionSpec(QWEN2_5_VL, 14, 2, 2, image_pixels=(3136, 12845056), video_pixels=(3136, 12845056))
VIDEO, IMAGE = "<|video_pad|>", "<|image_pad|>"
SIZE = {"resized_height": 112, "resized_width": 112}


def words(text):
    """A tokenizer: one token a word, a placeholder being a word."""
    return {"input_ids": text.split()}


def video(path, **rules) -> RowMedium:
    return RowMedium("videos", {"type": "video", "video": str(path), **SIZE, **rules})


def found(rows, *, tokens: int = 1000, spec=SPEC) -> list[tuple[int, str, str]]:
    outcome = screen(rows, prepare, lambda i: ("rl.jsonl", 10 + i), Limit(tokens, "data.max_length", words, spec))
    assert outcome.total == len(rows)
    return [(reject.position, reject.reason, str(reject)) for reject in outcome.rejects]


def prepare(position, row) -> Sample:
    if isinstance(row, RowError):
        raise row
    return row


def test_good_rows_pass_screening(clips, tmp_path):
    Image.new("RGB", (112, 112)).save(tmp_path / "a.png")
    rows = [
        Sample(f"a {VIDEO} b", (video(clips["quick"]),)),
        Sample(f"{IMAGE} {VIDEO}", (RowMedium("images", {"image": f"{tmp_path}/a.png"}), video(clips["odd"]))),
        Sample("text only"),
    ]
    assert found(rows) == []


def test_each_bad_row_has_its_reason_and_others_pass(clips, tmp_path):
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
        Sample(IMAGE, (RowMedium("images", {"image": str(tmp_path / "page.png")}),)),
    ]
    reasons = [reason for _, reason, _ in found(others)]
    assert len(reasons) == 4
    assert set(reasons) <= {"unreadable file", "no video frames"}


def test_a_reject_names_file_row_and_field(tmp_path):
    ((_, _, message),) = found([Sample(VIDEO, (video(tmp_path / "gone.mp4"),))])
    assert message.startswith(f"rl.jsonl row 10: field videos: {tmp_path}/gone.mp4: no such file")


def test_row_length_limit_is_inclusive(clips):
    # 8 frames of 112 x 112: 4 grids of 8 x 8 patches, 16 tokens each after merging. 64, and 3 words.
    row = Sample(f"one two {VIDEO} three", (video(clips["quick"], nframes=8),))
    assert found([row], tokens=67) == []
    ((_, reason, message),) = found([row], tokens=66)
    assert reason == "over-long"
    assert "its 67 tokens, 64 of them media, are more than data.max_length=66" in message


def test_in_memory_images_count_toward_row_length(clips):
    row = Sample(
        f"{IMAGE} {VIDEO}", (RowMedium("images", {"image": Image.new("RGB", (56, 84))}), video(clips["quick"]))
    )
    tokens = 2 * 3 + 32  # 2 x 3 squares of 28 pixels; 4 frames in 2 grids of 16
    assert found([row], tokens=tokens) == []
    assert [reason for _, reason, _ in found([row], tokens=tokens - 1)] == ["over-long"]


def test_every_frame_of_a_frame_list_is_checked_and_counted(tmp_path):
    frames = [str(tmp_path / f"{i}.png") for i in range(5)]
    for frame in frames:
        Image.new("RGB", (112, 112)).save(frame)
    row = Sample(VIDEO, (RowMedium("videos", {"type": "video", "video": frames, **SIZE}),))
    assert found([row], tokens=48) == []  # 5 frames and one repeated: 3 grids of 16 tokens
    assert [reason for _, reason, _ in found([row], tokens=47)] == ["over-long"]
    gone = Sample(VIDEO, (RowMedium("videos", {"type": "video", "video": [*frames, "/nowhere/5.png"], **SIZE}),))
    ((position, reason, message),) = found([row, gone, row])
    assert (position, reason) == (1, "missing file")
    assert "/nowhere/5.png" in message


def test_encoded_image_bytes_are_checked_and_counted(clips, tmp_path):
    Image.new("RGB", (112, 112)).save(tmp_path / "a.png")
    picture = (tmp_path / "a.png").read_bytes()
    rows = [Sample(IMAGE, (RowMedium("images", {"image": data, **SIZE}),)) for data in (picture, picture[:40], b"page")]
    assert [(position, reason) for position, reason, _ in found(rows, tokens=16)] == [
        (1, "unreadable file"),
        (2, "unreadable file"),
    ]
    assert [reason for _, reason, _ in found(rows[:1], tokens=15)] == ["over-long"]


LONG = "n" * 300
HOSTILE = {
    "a long name": ({"video": LONG}, "missing file"),
    "a NUL byte": ({"video": "a\0b"}, "missing file"),
    "a surrogate": ({"video": "\ud800"}, "missing file"),
    "a protocol": ({"video": "concat:a|b"}, "missing file"),
    "a folder": ({"video": "/"}, "missing file"),
    "a URL": ({"video": "http://127.0.0.1:9/a.mp4"}, "media behind a URL"),
    "another scheme": ({"video": "ftp://127.0.0.1/a.mp4"}, "media behind a URL"),
    "a URL in a URL": ({"video": "file://http://127.0.0.1/a.mp4"}, "media behind a URL"),
    "a number": ({"video": 3}, "bad media"),
    "nothing": ({"video": None}, "no media"),
    "an empty path": ({"video": ""}, "no media"),
    "no frames": ({"video": []}, "no media"),
    "bad data": ({"video": "data:video/mp4;base64,!!!"}, "bad media"),
    "data that is not a video": ({"video": "data:video/mp4;base64,AAAA"}, "unreadable file"),
    "a word for a number": ({"video": "CLIP", "fps": "fast"}, "bad media"),
    "no rate": ({"video": "CLIP", "fps": 0.0}, "bad media"),
    "a rate without end": ({"video": "CLIP", "fps": float("inf")}, "bad media"),
    "a number of hundreds of digits": ({"video": "CLIP", "nframes": 10**400}, "bad media"),
    "too many frames": ({"video": "CLIP", "nframes": 10**9}, "sampling rules"),
    "an end before its start": ({"video": "CLIP", "video_start": 3.0, "video_end": 1.0}, "sampling rules"),
    "a misspelt rule": ({"video": "CLIP", "max_frame": 8}, "bad media"),
}


@pytest.mark.parametrize(("part", "reason"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_medium_is_one_reject(clips, part, reason):
    part = {"type": "video", **{k: str(clips["quick"]) if v == "CLIP" else v for k, v in part.items()}}
    good = {"type": "video", "video": str(clips["quick"])}

    def sample(position, row):
        return Sample(VIDEO, media_in([{"content": [row]}], {"image": "images", "video": "videos"}))

    limit = Limit(1000, "data.max_length", words, SPEC)
    outcome = screen([good, part, good], sample, lambda i: ("rl.jsonl", i), limit)
    ((reject),) = outcome.rejects
    assert (reject.position, reject.reason, reject.field) == (1, reason, "videos")
    str(reject).encode()


def test_media_rules_given_as_text_or_decimal_are_read(clips):
    part = {
        "type": "video",
        "video": str(clips["quick"]),
        "fps": "2",
        "max_frames": Decimal(4),
        "nframes": float("nan"),
    }
    (medium,) = media_in([{"content": [part]}], {"image": "images", "video": "videos"})
    assert medium.element == {"type": "video", "video": str(clips["quick"]), "fps": 2.0, "max_frames": 4}
    assert found([Sample(VIDEO, (medium,))]) == []


def test_an_unknown_family_is_not_measured_but_its_media_are_read(clips, tmp_path):
    rows = [Sample(VIDEO, (video(clips["quick"]),)), Sample(VIDEO, (video(tmp_path / "gone.mp4"),))]
    assert [reason for _, reason, _ in found(rows, tokens=1, spec=None)] == ["missing file"]


def test_each_file_is_probed_once_for_all_its_rows(clips, tmp_path, monkeypatch):
    probed = []

    def counting(element):
        probed.append(element["video"])
        return VideoInfo(8, 4.0, 112, 112)

    monkeypatch.setattr(screening, "probe_element", counting)
    monkeypatch.setattr(screening, "CHUNK", 3)
    shutil.copy(clips["quick"], tmp_path / "copy.mp4")
    rows = [Sample(VIDEO, (video(path, nframes=n),)) for n in (2, 4, 6, 8) for path in ("a.mp4", "b.mp4")]
    assert found(rows) == []
    assert sorted(probed) == ["a.mp4", "b.mp4"]


def test_any_decoder_exception_rejects_only_that_file(clips, monkeypatch):
    real = probe.probe_file

    def failing(file):
        if file.name == str(clips["odd"]):
            raise ZeroDivisionError("fps")
        return real(file)

    monkeypatch.setattr(probe, "probe_file", failing)
    rows = [Sample(VIDEO, (video(clips[name]),)) for name in ("quick", "odd", "slow")]
    ((position, reason, message),) = found(rows)
    assert (position, reason) == (1, "unreadable file")
    assert "cannot be read (ZeroDivisionError: fps)" in message
