# SPDX-License-Identifier: Apache-2.0
"""Which frames of a video are taken, and when they are shown.

In a file with a constant rate, frame i is shown at i / fps, and qwen-vl-utils' own functions choose. In a file with a
variable rate, frame i is shown at `VideoInfo.times[i]`; as many frames are taken as qwen-vl-utils takes of a video of
that length, each the one nearest to evenly spaced times. Time starts with the first frame shown. [ours]
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from verl_p2r.media import torchvision_ops
from verl_p2r.media.deadline import RulesError
from verl_p2r.media.rules import checked
from verl_p2r.media.source import name_of

NOMINAL_FPS = 1000.0  # in the metadata of a file with a variable rate, whose frames are numbered by milliseconds
ROUNDING = 1e-6  # seconds; the time of a frame at 0.5 s may be a float just below it
FRAME_LIST_FPS = 2.0  # frames per second of a list of frames without `sample_fps`, as in qwen-vl-utils
MAX_TAKEN_PIXELS = 1 << 29  # pixels of all frames of a video together, or of an image, after the resize


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video that its container gives.

    Args:
        frames: number of frames.
        fps: frames per second, on average.
        height: height of the upright picture, in pixels.
        width: width of the upright picture, in pixels.
        times: for a variable rate, when each frame appears and, at the end, when the last one ends, in seconds after
            the first. None: frames are evenly spaced.
    """

    frames: int
    fps: float
    height: int
    width: int
    times: array | None = None


def check_taken(element: Mapping[str, Any], frames: int, height: int, width: int) -> None:
    """Check the number of pixels that an element takes after the resize.

    Args:
        element: for the name in the error.
        frames: number of frames.
        height: height of a frame, in pixels.
        width: width of a frame, in pixels.

    Raises:
        RulesError: they are more than `MAX_TAKEN_PIXELS`.
    """
    if frames * height * width > MAX_TAKEN_PIXELS:
        raise RulesError(
            f"{name_of(element)}: its size cannot be met: {frames} x {width} x {height} pixels exceed "
            f"{MAX_TAKEN_PIXELS}: take fewer or smaller frames"
        )


def sample_frames(element: Mapping[str, Any], info: VideoInfo) -> tuple[tuple[int, ...], int, float]:
    """Choose frames as qwen-vl-utils does.

    Args:
        element: a video element of a message, with `fps`, `min_frames`, `max_frames` or `nframes`, and `video_start`,
            `video_end` (seconds). A list of frames is taken whole, `sample_fps` of them a second.
        info: about its file.

    Returns:
        Indices of the frames; the number of frames they were chosen from; frames taken per second. The frame of a
        one-frame video is taken twice [ours], because a temporal grid needs two and qwen-vl-utils refuses such videos.
        The last frame of a list of odd length is taken twice, as in qwen-vl-utils.

    Raises:
        MediaError: the video cannot satisfy the rules.
    """
    rules, qwen = checked(element), torchvision_ops.qwen()
    if isinstance(element.get("video"), list | tuple):
        indices = [*range(info.frames), *[info.frames - 1] * (info.frames % qwen.FRAME_FACTOR)]
        return tuple(indices), len(indices), info.fps
    try:
        if info.times is not None:
            return _sample_by_time(rules, info)
        first, last, total = qwen.calculate_video_frame_range(rules, info.frames, info.fps)
        count = qwen.smart_nframes(rules, total_frames=max(total, qwen.FRAME_FACTOR), video_fps=info.fps)
    except (AssertionError, ValueError) as error:
        raise RulesError(f"{name_of(element)}: its sampling rules cannot be met: {error}") from error
    return tuple(torch.linspace(first, last, count).round().long().tolist()), total, count / total * info.fps


def _sample_by_time(rules: Mapping[str, Any], info: VideoInfo) -> tuple[tuple[int, ...], int, float]:
    """Choose frames that are evenly spaced in time; rules about frames per second apply to the mean rate."""
    qwen, times = torchvision_ops.qwen(), np.asarray(info.times)
    shown, end = times[:-1], times[-1]
    start, stop = rules.get("video_start") or 0.0, rules.get("video_end", end)
    within = np.flatnonzero((shown >= start - ROUNDING) & (shown <= stop + ROUNDING))
    if len(within) < qwen.FRAME_FACTOR:
        raise ValueError(f"from {start:g} s to {stop:g} s of {end:g} s it shows {len(within)} frames")
    first, last = int(within[0]), int(within[-1])
    seconds = float(times[last + 1] - times[first])
    count = qwen.smart_nframes(rules, total_frames=len(within), video_fps=len(within) / seconds)
    middles = (shown[first:last] + shown[first + 1 : last + 1]) / 2  # up to here the earlier frame is the nearer
    indices = first + np.searchsorted(middles, np.linspace(shown[first], shown[last], count))
    return tuple(indices.tolist()), len(within), count / seconds


def video_metadata(info: VideoInfo, indices: Sequence[int], total: int, sampled_fps: float) -> dict[str, Any]:
    """Build the metadata of sampled frames, in which index / fps is the time of a frame.

    Args:
        info: about the file.
        indices: from `sample_frames`.
        total: from `sample_frames`.
        sampled_fps: from `sample_frames`.

    Returns:
        `fps`, `frames_indices` and `total_num_frames` as qwen-vl-utils gives them. A variable rate is described as a
        file with 1000 frames per second of which the frames at the true milliseconds were taken, so that every
        processor finds the true times and the true number of frames per second.
    """
    if info.times is None:
        return {"fps": info.fps, "frames_indices": list(indices), "total_num_frames": total}
    return {
        "fps": NOMINAL_FPS,
        "frames_indices": [round(info.times[i] * NOMINAL_FPS) for i in indices],
        "total_num_frames": max(round(len(indices) / sampled_fps * NOMINAL_FPS), len(indices)),
    }


def grid_times(metadata: Mapping[str, Any], temporal_patch_size: int) -> tuple[float, ...]:
    """Compute the middle of each temporal grid, as Qwen3-VL writes it into the prompt.

    Args:
        metadata: from `video_metadata`.
        temporal_patch_size: frames in a temporal grid.

    Returns:
        The middle between the first and the last frame of each grid, in seconds.
    """
    seconds = [index / metadata["fps"] for index in metadata["frames_indices"]]
    seconds += [seconds[-1]] * (-len(seconds) % temporal_patch_size)
    grids = range(0, len(seconds), temporal_patch_size)
    return tuple((seconds[i] + seconds[i + temporal_patch_size - 1]) / 2 for i in grids)


def shown_times(times: Sequence[float] | np.ndarray, fps: float, end: float | None = None) -> array | None:
    """Decide whether frames are evenly spaced.

    Args:
        times: when each frame is shown, in seconds, in ascending order.
        fps: the mean rate that the container declares.
        end: when the last frame ends, in seconds; None: one mean distance after it.

    Returns:
        None when every frame is less than half a frame away from its place at that rate; otherwise
        `VideoInfo.times`.
    """
    moments = np.asarray(times, np.float64)
    moments = moments - moments[0]
    if fps > 0 and np.abs(moments * fps - np.arange(len(moments))).max() <= 0.5:
        return None
    if len(moments) < 2:
        return None
    last = moments[-1]
    final = end - times[0] if end is not None and end - times[0] > last else last + last / (len(moments) - 1)
    return array("d", [*moments.tolist(), final])
