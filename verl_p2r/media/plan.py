# SPDX-License-Identifier: Apache-2.0
"""Frames, sizes and tokens of a video or an image, as arithmetic on the metadata of its container.

This follows the sampling and the resize of qwen-vl-utils, then the second resize of the Hugging Face processor, and
calls the libraries' own rules where it can. `verl_p2r.media.probe` reads the metadata, `verl_p2r.media.decode` the
pixels.
"""

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_p2r.media import torchvision_ops
from verl_p2r.media.deadline import MediaError as MediaError
from verl_p2r.media.deadline import RulesError
from verl_p2r.media.families import Time
from verl_p2r.media.rules import checked
from verl_p2r.media.sampling import VideoInfo, check_taken, grid_times, sample_frames, video_metadata
from verl_p2r.media.source import name_of
from verl_p2r.media.vision_spec import VisionSpec

torchvision_ops.install()  # before anything imports transformers' processors, which import torchvision


@dataclass(frozen=True)
class VideoPlan:
    """Frames, size and tokens of a video.

    Args:
        indices: the frames that are decoded, in display order.
        total: number of frames they were chosen from.
        sampled_fps: frames taken per second of video.
        height: height of the frames given to the processor, in pixels; it may resize them to `grid` times the patch
            size.
        width: width of the same frames, in pixels.
        grid: patches in time, height and width.
        tokens: placeholders in the prompt.
        timestamps: the middle of each temporal grid, in seconds from the start of the file.
    """

    indices: tuple[int, ...]
    total: int
    sampled_fps: float
    height: int
    width: int
    grid: tuple[int, int, int]
    tokens: int
    timestamps: tuple[float, ...]


@dataclass(frozen=True)
class ImagePlan:
    """Size and tokens of an image.

    Args:
        height: height of the image given to the processor, in pixels.
        width: width of the same image, in pixels.
        grid: patches in time, height and width.
        tokens: placeholders in the prompt.
    """

    height: int
    width: int
    grid: tuple[int, int, int]
    tokens: int


def plan_video(element: Mapping[str, Any], info: VideoInfo, spec: VisionSpec) -> VideoPlan:
    """Compute what qwen-vl-utils and the processor will make of a video.

    Args:
        element: a video element of a message, with the fields that `sample_frames` reads and `min_pixels`,
            `max_pixels`, `total_pixels`, `resized_height`, `resized_width`.
        info: about its file.
        spec: spec of the model's processor.

    Raises:
        MediaError: the video cannot satisfy the rules, or its shape is outside the processor's bounds.
    """
    indices, total, sampled_fps = sample_frames(element, info)
    height, width = frame_size(element, len(indices), (info.height, info.width), spec.patch_size)
    grids = -(-len(indices) // spec.temporal_patch_size)  # the last frame is repeated to fill the last grid
    final = _size_of(element, lambda: _processor_frame_size(len(indices), height, width, spec))
    grid = (grids, final[0] // spec.patch_size, final[1] // spec.patch_size)
    return VideoPlan(
        indices=indices,
        total=total,
        sampled_fps=sampled_fps,
        height=height,
        width=width,
        grid=grid,
        tokens=_tokens(grid, spec),
        timestamps=grid_times(video_metadata(info, indices, total, sampled_fps), spec.temporal_patch_size),
    )


def frame_size(element: Mapping[str, Any], frames: int, size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Compute the size that qwen-vl-utils gives frames, which is a part of its `fetch_video`.

    Args:
        element: as for `plan_video`.
        frames: number of frames.
        size: height and width in the file, in pixels.
        patch_size: patch size of the model's processor, in pixels.

    Returns:
        Height and width, in pixels.

    Raises:
        MediaError: the shape is out of bounds, or the rules contradict each other.
    """
    element, qwen = checked(element), torchvision_ops.qwen()
    factor = patch_size * qwen.SPATIAL_MERGE_SIZE

    def rule() -> tuple[int, int]:
        if "resized_height" in element and "resized_width" in element:
            return qwen.smart_resize(element["resized_height"], element["resized_width"], factor=factor)
        least = element.get("min_pixels", qwen.VIDEO_MIN_TOKEN_NUM * factor**2)
        budget = element.get("total_pixels", qwen.MODEL_SEQ_LEN * factor * factor * 0.9)
        most = max(min(qwen.VIDEO_MAX_TOKEN_NUM * factor**2, budget / frames * qwen.FRAME_FACTOR), int(least * 1.05))
        most = min(element.get("max_pixels", most), most)
        return qwen.smart_resize(*size, factor=factor, min_pixels=least, max_pixels=most)

    height, width = _size_of(element, rule)
    check_taken(element, frames, height, width)
    return height, width


def plan_image(element: Mapping[str, Any], size: tuple[int, int], spec: VisionSpec) -> ImagePlan:
    """Compute what qwen-vl-utils and the processor will make of an image.

    Args:
        element: an image element of a message, with `min_pixels`, `max_pixels`, `resized_height`, `resized_width`.
        size: height and width in the file, in pixels.
        spec: spec of the model's processor.

    Raises:
        MediaError: its shape is outside the processor's bounds.

    >>> from verl_p2r.media.families import QWEN2_5_VL
    >>> spec = VisionSpec(QWEN2_5_VL, 14, 2, 2, image_pixels=(3136, 12845056), video_pixels=(3136, 12845056))
    >>> plan_image({"image": "a.png", "max_pixels": 256 * 28 * 28}, (1080, 1920), spec)
    ImagePlan(height=336, width=588, grid=(1, 24, 42), tokens=252)
    """
    height, width = image_size(element, size, spec.patch_size)
    final = _size_of(element, lambda: _processor_size(height, width, spec, spec.image_pixels))
    grid = (1, final[0] // spec.patch_size, final[1] // spec.patch_size)
    return ImagePlan(height=height, width=width, grid=grid, tokens=_tokens(grid, spec))


def plan_element(
    element: Mapping[str, Any], probed: VideoInfo | tuple[int, int], spec: VisionSpec
) -> VideoPlan | ImagePlan:
    """Plan a video or an image.

    Args:
        element: a canonical element.
        probed: the result of `probe.probe_element` for it.
        spec: spec of the model's processor.

    Raises:
        MediaError: it cannot satisfy the rules, or its shape is outside the processor's bounds.
    """
    if isinstance(probed, VideoInfo):
        return plan_video(element, probed, spec)
    return plan_image(element, probed, spec)


def image_size(element: Mapping[str, Any], size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Compute the size that qwen-vl-utils gives an image, which is a part of its `fetch_image`.

    Args:
        element: as for `plan_image`.
        size: height and width in the file, in pixels.
        patch_size: patch size of the model's processor, in pixels.

    Returns:
        Height and width, in pixels.

    Raises:
        MediaError: the shape is out of bounds, or the rules contradict each other.
    """
    element, qwen = checked(element), torchvision_ops.qwen()
    factor = patch_size * qwen.SPATIAL_MERGE_SIZE

    def rule() -> tuple[int, int]:
        if "resized_height" in element and "resized_width" in element:
            return qwen.smart_resize(element["resized_height"], element["resized_width"], factor=factor)
        return qwen.smart_resize(*size, factor, element.get("min_pixels"), element.get("max_pixels"))

    height, width = _size_of(element, rule)
    check_taken(element, 1, height, width)
    return height, width


def prompt_tokens(text: str, plans: Sequence[VideoPlan | ImagePlan], tokenizer: Any, spec: VisionSpec) -> int:
    """Count the tokens of a prompt with its media, without decoding them.

    Args:
        text: the rendered chat, with one placeholder for each medium.
        plans: plans of all media; videos and images each in the order of their placeholders.
        tokenizer: tokenizer of the processor.
        spec: spec of the processor.

    Returns:
        The length of the processor's `input_ids`, in tokens.

    Raises:
        ValueError: the numbers of placeholders and plans differ.
    """
    queues: dict[str, deque[VideoPlan | ImagePlan]] = {
        spec.image_token: deque(plan for plan in plans if isinstance(plan, ImagePlan)),
        spec.video_token: deque(plan for plan in plans if isinstance(plan, VideoPlan)),
    }
    for token, queue in queues.items():
        if text.count(token) != len(queue):
            raise ValueError(f"the prompt holds {text.count(token)} {token}, but it comes with {len(queue)} of them")
    more = 0  # tokens beyond one per run of placeholders

    def expand(match: re.Match[str]) -> str:
        nonlocal more
        plan = queues[match[0]].popleft()
        if spec.family.time is not Time.TEXT or isinstance(plan, ImagePlan):
            more += plan.tokens - 1
            return match[0]
        more += plan.tokens - len(plan.timestamps)
        grid = f"{spec.vision_start}{match[0]}{spec.vision_end}"
        return "".join(f"<{seconds:.1f} seconds>{grid}" for seconds in plan.timestamps)

    short = re.sub("|".join(map(re.escape, queues)), expand, text)
    return len(tokenizer(short)["input_ids"]) + more


def _size_of(element: Mapping[str, Any], rule: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Apply one of the libraries' rules; errors name the file."""
    try:
        size = rule()
        if min(size) <= 0:
            raise ValueError(f"it would become {size[1]} x {size[0]} pixels: it is too narrow for so few")
    except (AssertionError, ValueError, ArithmeticError) as error:
        raise RulesError(f"{name_of(element)}: its size cannot be met: {error}") from error
    return size


def _processor_size(height: int, width: int, spec: VisionSpec, pixels: tuple[int, int] | None) -> tuple[int, int]:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    if pixels is None:
        return height, width
    return smart_resize(height, width, spec.patch_size * spec.merge_size, *pixels)


def _processor_frame_size(frames: int, height: int, width: int, spec: VisionSpec) -> tuple[int, int]:
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    if not spec.family.limits_whole_videos or spec.video_pixels is None:
        return _processor_size(height, width, spec, spec.video_pixels)
    factor = spec.patch_size * spec.merge_size
    return smart_resize(frames, height, width, spec.temporal_patch_size, factor, *spec.video_pixels)


def _tokens(grid: tuple[int, int, int], spec: VisionSpec) -> int:
    return grid[0] * grid[1] * grid[2] // spec.merge_size**2
