# SPDX-License-Identifier: Apache-2.0
"""Tokens of a prompt: the most that its media can need, and what real rows need, from metadata alone."""

from collections.abc import Sequence
from typing import Any

from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.screening import Sample
from verl_p2r.media.families import Time
from verl_p2r.media.plan import VideoInfo, VisionSpec, plan_element, plan_image, plan_video, prompt_tokens
from verl_p2r.media.probe import probe_element
from verl_p2r.media.rules import MediaSettings

SHAPES = [(1080, 1920), (1920, 1080), (720, 720), (480, 640), (816, 1920), (339, 678), (360, 1080)]  # height, width
SMALL = [(60, 3 * k) for k in range(20, 81)]  # enlarged and rounded up; 1:1 to 1:4
CHARACTERS = 4  # characters of English per token, about
AROUND = 100  # tokens of the chat template, the question and its options, about


def worst_media(
    media: MediaSettings, spec: VisionSpec, shapes: Sequence[tuple[int, int]] = (*SHAPES, *SMALL)
) -> tuple[int, int]:
    """Compute the most tokens of a medium: images, and videos long enough for all frames.

    Args:
        media: how media are sampled and sized.
        spec: spec of the model's processor.
        shapes: heights and widths in the files, in pixels; by default also small ones, which can need an eighth more
            when `video_min_pixels` enlarges them.

    Returns:
        Tokens, including timestamps before temporal grids; and patches in one temporal grid.

    >>> from verl_p2r.media.families import QWEN2_5_VL
    >>> spec = VisionSpec(QWEN2_5_VL, 14, 2, 2, image_pixels=(3136, 12845056), video_pixels=(3136, 12845056))
    >>> worst_media(MediaSettings(), spec, SHAPES)  # 8 grids of 128 tokens, 4 patches each
    (1024, 512)
    """
    video, image = media.fill({"video": "a.mp4"}), media.fill({"image": "a.png"})
    videos = [plan_video(video, VideoInfo(100_000, 30.0, *shape), spec) for shape in shapes]
    images = [plan_image(image, shape, spec) for shape in shapes]
    largest = max(videos, key=lambda plan: plan.tokens)
    stamps = largest.grid[0] * 10 if spec.family.time is Time.TEXT else 0  # "<12.5 seconds>" and two marks
    tokens = max(largest.tokens + stamps, max(plan.tokens for plan in images))
    return tokens, largest.grid[1] * largest.grid[2]


def text_estimate(template: PromptTemplate) -> int:
    """Estimate the tokens of a prompt without its media, if no row can be counted [ours].

    Args:
        template: template of the prompt.

    >>> text_estimate(PromptTemplate.load("process_aware"))
    352
    """
    return len(template.body) // CHARACTERS + AROUND


def count(sample: Sample, spec: VisionSpec, tokenizer: Any) -> tuple[int, int]:
    """Count the tokens of a row without decoding its media.

    Args:
        sample: a row whose media are local files.
        spec: spec of the model's processor.
        tokenizer: tokenizer of the model.

    Returns:
        All tokens, and those of the media.

    Raises:
        MediaError: a medium cannot be used.
    """
    plans = [plan_element(element, probe_element(element), spec) for _, element in sample.media]
    return prompt_tokens(sample.text, plans, tokenizer, spec), sum(plan.tokens for plan in plans)
