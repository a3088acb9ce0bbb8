# SPDX-License-Identifier: Apache-2.0
"""What a model's processor does with media, as far as sizes and token counts depend on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl_p2r.media.families import Family, family_of_processor


@dataclass(frozen=True)
class VisionSpec:
    """The settings of a processor that decide the sizes and token counts of media.

    Args:
        family: family of the model.
        patch_size: side of a patch, in pixels.
        temporal_patch_size: frames in a temporal grid.
        merge_size: side of the square of patches that becomes one token, in patches.
        image_pixels: least and most pixels of an image; None when the processor does not resize.
        video_pixels: least and most pixels of a frame, or of all frames together if the family
            `limits_whole_videos`; None when the processor does not resize.
        image_token: placeholder of an image in rendered text.
        video_token: placeholder of a video in rendered text.
        vision_start: token before a medium; with `Time.TEXT`, before each temporal grid.
        vision_end: token after it.
    """

    family: Family
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    image_pixels: tuple[int, int] | None
    video_pixels: tuple[int, int] | None
    image_token: str = "<|image_pad|>"
    video_token: str = "<|video_pad|>"
    vision_start: str = "<|vision_start|>"
    vision_end: str = "<|vision_end|>"

    @classmethod
    def from_processor(
        cls, processor: Any, mm_processor_kwargs: Mapping[str, Any] | None = None
    ) -> "VisionSpec | None":
        """Read the settings from a Hugging Face processor.

        Args:
            processor: a processor; None for a text model.
            mm_processor_kwargs: arguments that verl passes in every call (`data.mm_processor_kwargs`).

        Returns:
            None for a family that is not in the table.

        Raises:
            ValueError: the arguments make the processor drop frames that were sampled already.
        """
        family = family_of_processor(processor)
        if family is None:
            return None
        kwargs = dict(mm_processor_kwargs or {})
        image, video = processor.image_processor, processor.video_processor
        if _setting(video, "videos_kwargs", "do_sample_frames", kwargs, default=False):
            raise ValueError(
                "data.mm_processor_kwargs sets do_sample_frames: frames are sampled when they are decoded, and would "
                "be sampled a second time; remove it and set fps or nframes of the videos"
            )
        return cls(
            family=family,
            patch_size=image.patch_size,
            temporal_patch_size=video.temporal_patch_size,
            merge_size=image.merge_size,
            image_pixels=_pixel_bounds(image, "images_kwargs", kwargs),
            video_pixels=_pixel_bounds(video, "videos_kwargs", kwargs),
            image_token=processor.image_token,
            video_token=processor.video_token,
            vision_start=getattr(processor, "vision_start_token", cls.vision_start),
            vision_end=getattr(processor, "vision_end_token", cls.vision_end),
        )


def _setting(part: Any, modality: str, name: str, kwargs: Mapping[str, Any], default: Any = None) -> Any:
    """The value that a call with these arguments gives a part of the processor.

    An argument in the modality's own mapping wins; a flat one counts where the part knows its name.
    """
    nested = kwargs.get(modality, {})
    if name in nested:
        return nested[name]
    return kwargs.get(name, default) if name in part.valid_kwargs.__annotations__ else default


def _pixel_bounds(part: Any, modality: str, kwargs: Mapping[str, Any]) -> tuple[int, int] | None:
    if not _setting(part, modality, "do_resize", kwargs, default=part.do_resize):
        return None
    size = _setting(part, modality, "size", kwargs) or part.size
    if {"min_pixels", "max_pixels"} <= part.valid_kwargs.__annotations__.keys():  # Qwen3-VL's videos do not read these
        pair = [_setting(part, modality, name, kwargs) for name in ("min_pixels", "max_pixels")]
        if None not in pair:  # one alone is ignored
            return pair[0], pair[1]
    return size["shortest_edge"], size["longest_edge"]
