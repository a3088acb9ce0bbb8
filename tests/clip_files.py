# SPDX-License-Identifier: Apache-2.0
"""Writes video files of many kinds, and decodes them completely."""

from fractions import Fraction

import av
import numpy as np

from verl_p2r.media.decode import (
    local_path,
)
from verl_p2r.media.plan import sample_frames
from verl_p2r.media.probe import probe_video


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
