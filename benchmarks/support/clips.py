# SPDX-License-Identifier: Apache-2.0
"""Clips for the benchmarks of media, data tools and evaluation."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np


class Clips:
    """Videos that no cache has seen: each is a file, although only a few contents exist.

    Args:
        folder: where the contents are written.
        contents: how many there are.
        shape: `width`, `height`, `fps` and `seconds`, as for `write_clip`.
    """

    def __init__(self, folder: Path, contents: int, **shape: int):
        self._folder, self._given = folder, 0
        self._contents = [folder / f"content{i}.mp4" for i in range(contents)]
        for seed, path in enumerate(self._contents):
            write_clip(path, seed, **shape)

    def give(self, path: Path) -> None:
        """Put the next clip at `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(self._contents[self._given % len(self._contents)], path)
        self._given += 1

    def take(self, count: int) -> list[str]:
        """Put `count` clips into the folder, and return their paths."""
        paths = [self._folder / f"clip{os.getpid()}-{self._given + i}.mp4" for i in range(count)]
        for path in paths:
            self.give(path)
        return list(map(str, paths))


def write_clip(path: Path, seed: int, *, width: int, height: int, fps: int, seconds: int) -> None:
    """Write a clip in which the camera pans over soft shapes, with its noise.

    Args:
        path: the mp4 file; its folder exists.
        seed: draws shapes and noise.
        width: pixels of a frame.
        height: pixels of a frame.
        fps: frames per second.
        seconds: how long the clip is.
    """
    rng = np.random.default_rng(seed)
    frames = fps * seconds
    rows, columns = np.mgrid[0 : height + frames // 3 + 1, 0 : width + frames] / 40
    waves = rng.uniform(0.3, 3, (3, 2))
    scene = np.stack([128 + 90 * np.sin(a * rows) * np.cos(b * columns + a) for a, b in waves], axis=-1)
    scene += rng.normal(0, 6, scene.shape)
    scene = scene.clip(0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            picture = np.ascontiguousarray(scene[i // 3 : i // 3 + height, i : i + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
