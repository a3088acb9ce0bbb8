# SPDX-License-Identifier: Apache-2.0
"""Files that reach out, hang, or declare more than they hold; and files that only look bad."""

import struct
import tracemalloc
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from data_tools.look.pictures import pictures_of
from data_tools.media.check import fault_of
from verl_p2r.data.record import Medium
from verl_p2r.media import containers, opening, probe
from verl_p2r.media.containers import inspect_container
from verl_p2r.media.deadline import Deadline, timeout
from verl_p2r.media.decode import decode_frames, fetch_video, read_video
from verl_p2r.media.families import QWEN3_VL
from verl_p2r.media.plan import MediaError, VideoInfo, VisionSpec, plan_video
from verl_p2r.media.probe import probe_element, probe_video
from verl_p2r.media.rules import TRAINING
from verl_p2r.media.source import MediaFile


def write(path, codec="mpeg4", frames=30, size=(48, 64), title="", colour=0):
    with av.open(str(path), "w") as container:
        if title:
            container.metadata.update({"title": title})
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            picture = np.full((*size, 3), (colour + 7 * i) % 255, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


SECRET = "../secret/private.mp4"
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"
PLAYLISTS = {
    "HLS": HLS.format(SECRET),
    "HLS to a network": HLS.format("http://127.0.0.1:9/a.ts"),
    "HLS master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{SECRET}\n",
    "ffconcat": f"ffconcat version 1.0\nfile '{SECRET}'\n",
    "ffconcat of itself": "ffconcat version 1.0\nfile {name}\n",
    "ffconcat with options": f"ffconcat version 1.0\nfile {SECRET}\noption protocol_whitelist file,http,tcp\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "DASH": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    f'<Representation id="1"><BaseURL>{SECRET}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "IMF": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>',
    "PLS": f"[playlist]\nFile1={SECRET}\nNumberOfEntries=1\n",
    "ASX": f'<asx version="3.0"><entry><ref href="{SECRET}"/></entry></asx>',
    "RealText": "[Reference]\nRef1=http://127.0.0.1:9/a.ts\n",
    "SVG": '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "VobSub": "# VobSub index file, v7 (do not modify this line!)\nsize: 64x48\n",
}


@pytest.mark.parametrize("ending", ["mp4", "m3u8", "ts", "mkv", "txt", "ffconcat", "mpd", "sdp"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_are_refused_with_any_file_extension(tmp_path, kind, ending):
    (tmp_path / "secret").mkdir()
    (tmp_path / "media").mkdir()
    write(tmp_path / "secret" / "private.mp4", frames=4)
    path = tmp_path / "media" / f"clip.{ending}"
    path.write_text(PLAYLISTS[kind].replace("{name}", path.name))
    for content in (str(path), path.read_bytes()):
        with pytest.raises(MediaError, match="cannot be read as a video"):
            probe_video(content)
        with pytest.raises(MediaError, match="cannot be read as a video"):
            decode_frames(content, [0])
    assert "cannot be read as a video" in pictures_of({"video": str(path)}, 2, 1 << 20).error


def test_ffmpeg_without_format_list_follows_playlist(tmp_path):
    """The reference of the test above: what would happen without the list of formats."""
    write(tmp_path / "private.mp4", frames=4)
    (tmp_path / "clip.mp4").write_text("ffconcat version 1.0\nfile private.mp4\n")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert len(list(container.decode(video=0))) == 4


def test_mp4_referencing_another_file_is_refused(tmp_path):
    data = write(tmp_path / "clip.mp4").read_bytes()
    assert data.count(b"url \0\0\0\1") == 1
    with pytest.raises(MediaError, match="refers to data in another file"):
        probe_video(data.replace(b"url \0\0\0\1", b"url \0\0\0\0"))


def element(number: int, content: bytes) -> bytes:
    """An EBML element with a size of eight bytes."""
    name = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return name + (len(content) | 1 << 56).to_bytes(8, "big") + content


@pytest.mark.parametrize("linked", [True, False])
def test_matroska_chapters_linking_other_files_are_refused(linked):
    part = element(0x6E67, b"\1" * 16) if linked else element(0x85, b"Opening")
    chapters = element(0x1043A770, element(0x45B9, element(0xB6, part)))
    file = MediaFile.of(element(0x1A45DFA3, b"") + element(0x18538067, element(0xEC, b"") + chapters))
    if linked:
        with pytest.raises(MediaError, match="parts of other files"):
            inspect_container(file)
    else:
        assert inspect_container(file) is None


@pytest.mark.parametrize("ending", ["avi", "mp4", "mkv", "mov"])
def test_video_with_latin_1_title_is_read(tmp_path, ending):
    path = write(tmp_path / f"clip.{ending}", title="AAcafeAA")
    data = path.read_bytes()
    assert b"AAcafeAA" in data
    path.write_bytes(data.replace(b"AAcafeAA", b"AAcaf\xe9AA"))
    assert probe_video(str(path)) == VideoInfo(30, 10.0, 48, 64)
    assert len(read_video({"video": str(path), "nframes": 4})[0]) == 4


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def declaring(samples: int) -> bytes:
    """A small mp4 whose index declares any number of samples: all chunks are the same bytes."""
    stts = box(b"stts", struct.pack(">IIII", 0, 1, samples, 1))
    stsz = box(b"stsz", struct.pack(">III", 0, 1, samples))
    hdlr = box(b"hdlr", bytes(8), b"vide", bytes(13))
    mdhd = box(b"mdhd", struct.pack(">IIIIII", 0, 0, 0, 25, samples, 0))
    trak = box(b"trak", box(b"mdia", mdhd, hdlr, box(b"minf", box(b"stbl", stts, stsz))))
    return box(b"ftyp", b"isom\0\0\0\0") + box(b"moov", trak)


def test_video_with_too_many_declared_samples_is_refused():
    with pytest.raises(MediaError, match="declares 10000000 samples, more than 4194304: cut the video"):
        probe_video(declaring(10**7))


def test_declared_index_above_size_limit_is_refused(monkeypatch):
    monkeypatch.setattr(containers, "MAX_INDEX", 10)
    with pytest.raises(MediaError, match=r"its index declares \d+ bytes, more than 10"):
        probe_video(declaring(3))


def test_deadline_applies_while_reading_index():
    deadline = Deadline("a.mp4", 0.0)
    file = MediaFile(b"", "a.mp4", deadline)
    entries = [SimpleNamespace(pos=0, size=1, is_discard=False, is_keyframe=True)] * 10
    with pytest.raises(MediaError, match="not read within 0 s"):
        probe._read_table(SimpleNamespace(size=1), SimpleNamespace(index_entries=entries), file)


def test_video_frames_with_too_many_pixels_are_refused(tmp_path, monkeypatch):
    path = str(write(tmp_path / "clip.mp4", frames=2))
    monkeypatch.setattr(opening, "MAX_FRAME_PIXELS", 48 * 64 - 1)
    with pytest.raises(MediaError, match="frames of 64 x 48 pixels are larger than 3071 pixels"):
        probe_video(path)


def test_fetch_video_peak_memory_is_a_few_full_size_frames(tmp_path):
    path = str(write(tmp_path / "large.mp4", frames=16, size=(1024, 1024)))
    tracemalloc.start()
    frames, _ = fetch_video({"video": path, "nframes": 16, "resized_height": 56, "resized_width": 56}, 14)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames.shape == (16, 3, 56, 56)
    assert peak < 5 * 3 * 1024**2  # a few of the 16 frames of 3 MiB at a time


@pytest.mark.parametrize("value", ["nan", "-1", "0", "", "0x5", "-inf", "soon"])
def test_media_timeout_must_be_positive_seconds(monkeypatch, value):
    monkeypatch.setenv("VERL_P2R_MEDIA_TIMEOUT", value)
    with pytest.raises(ValueError, match="give seconds, more than 0"):
        timeout()


@pytest.mark.parametrize("value", ["inf", "1e400", "1e30"])
def test_media_timeout_may_be_infinite(clips, monkeypatch, value):
    monkeypatch.setenv("VERL_P2R_MEDIA_TIMEOUT", value)
    assert probe_video(str(clips["quick"])).frames == 8


def test_symlinks_leaving_media_root_are_refused_unless_allowed(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    write(tmp_path / "private.mp4")
    (tmp_path / "root" / "link.mp4").symlink_to(tmp_path / "private.mp4")
    write(tmp_path / "root" / "own.mp4")
    (tmp_path / "root" / "near.mp4").symlink_to(tmp_path / "root" / "own.mp4")
    assert fault_of(Medium("video", "near.mp4"), tmp_path / "root") is None
    fault = fault_of(Medium("video", "link.mp4"), tmp_path / "root")
    assert fault is not None
    assert fault.reason == "outside the media root"
    assert "set VERL_P2R_ALLOW_OUTSIDE_MEDIA_ROOT=1" in str(fault)
    monkeypatch.setenv("VERL_P2R_ALLOW_OUTSIDE_MEDIA_ROOT", "1")
    assert fault_of(Medium("video", "link.mp4"), tmp_path / "root") is None


# --- Lists of frames, and videos in memory ---------------------------------------------------------------------------


@pytest.fixture
def frames(tmp_path) -> list[str]:
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for i, path in enumerate(paths):
        Image.new("RGB", (112, 84), (40 * i, 0, 0)).save(path)
    return paths


def test_list_of_frame_images_is_read_as_video(frames):
    given = TRAINING.fill({"type": "video", "video": frames, "resized_height": 56, "resized_width": 84})
    assert probe_element(given) == VideoInfo(5, 2.0, 84, 112)
    plan = plan_video(given, probe_element(given), VisionSpec(QWEN3_VL, 14, 2, 2, None, None))
    video, metadata = fetch_video(given, 14)
    assert video.shape == (6, 3, 56, 84) == (len(plan.indices), 3, plan.height, plan.width)
    assert [int(frame[0, 9, 9]) for frame in video] == [0, 40, 80, 120, 160, 160]  # filled up to whole grids
    assert metadata["fps"] == 2.0
    assert plan.timestamps == (0.25, 1.25, 2.0)
    slow, metadata = fetch_video({**given, "sample_fps": 0.5}, 14)
    assert (len(slow), metadata["fps"], metadata["total_num_frames"]) == (6, 0.5, 6)


@pytest.mark.parametrize("bad", ["missing", "truncated", "another size", "empty"])
def test_unusable_frame_in_list_is_named_by_probe(tmp_path, frames, bad):
    if bad == "missing":
        frames[3] = str(tmp_path / "gone.png")
    elif bad == "another size":
        Image.new("RGB", (56, 56)).save(frames[3])
    elif bad == "truncated":
        data = open(frames[3], "rb").read()  # noqa: SIM115
        open(frames[3], "wb").write(data[: len(data) // 2])  # noqa: SIM115
    given = {"type": "video", "video": [] if bad == "empty" else frames}
    name = "gone.png" if bad == "missing" else "not a video" if bad == "empty" else "3.png"
    for reader in (probe_element, lambda e: fetch_video(e, 14)):
        with pytest.raises(MediaError, match=name):
            reader(given)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts"])
def test_video_bytes_are_read_like_their_file(tmp_path, ending):
    path = write(tmp_path / f"clip.{ending}")
    rules = {"nframes": 4, "resized_height": 56, "resized_width": 56}
    by_path = fetch_video({"video": str(path), **rules}, 14)
    by_bytes = fetch_video({"video": path.read_bytes(), **rules}, 14)
    assert probe_element({"video": path.read_bytes()}) == probe_element({"video": str(path)})
    assert (by_path[0] == by_bytes[0]).all()
    assert by_path[1] == by_bytes[1]


def test_truncated_avi_is_detected_by_probe(tmp_path):
    data = write(tmp_path / "clip.avi").read_bytes()
    with pytest.raises(MediaError, match=r"the file is truncated: \d+ of 30 frames"):
        probe_video(data[: len(data) * 3 // 4])


def test_truncated_matroska_is_detected_by_probe(tmp_path):
    data = write(tmp_path / "clip.mkv").read_bytes()
    with pytest.raises(MediaError, match="the file is truncated: it has"):
        probe_video(data[: len(data) - 9])


def test_frame_rate_of_0_01_fps_is_read(tmp_path):
    with av.open(str(tmp_path / "slow.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(1, 100))
        stream.width = stream.height = 48
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 48, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    assert probe_video(str(tmp_path / "slow.mp4")) == VideoInfo(3, 0.01, 48, 48)
