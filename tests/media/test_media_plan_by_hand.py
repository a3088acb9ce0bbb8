# SPDX-License-Identifier: Apache-2.0
"""Sizes, tokens, times and filled-in rules, worked out by hand."""

from dataclasses import replace

import pytest

from verl_p2r.media.families import QWEN2_5_VL, QWEN3_VL
from verl_p2r.media.plan import VideoInfo, VisionSpec, plan_video
from verl_p2r.media.rules import EVALUATION, TRAINING, MediaSettings

# By hand, for Qwen2.5-VL with 1920 x 1080 pixels at 30 fps for 10 seconds.
HAND = [
    # Training: 16 frames of sqrt(1080 · 1920 / 100352) = 4.5457 times smaller sides, cut to multiples of 28:
    # 1080 / 4.5457 = 237.6 -> 8 · 28, 1920 / 4.5457 = 422.4 -> 15 · 28. Tokens: 16 / 2 · 8 · 15.
    (TRAINING, 16, (224, 420), 960),
    # Evaluation: 2 fps of 10 s are 20 frames; sqrt(1080 · 1920 / 200704) = 3.2143: 336.0 -> 12 · 28 (336.0004),
    # 597.3 -> 21 · 28. Tokens: 10 · 12 · 21.
    (EVALUATION, 20, (336, 588), 2520),
]


@pytest.mark.parametrize(("settings", "frames", "size", "tokens"), HAND, ids=["training", "evaluation"])
def test_paper_media_settings_match_hand_computed_plan(settings, frames, size, tokens):
    spec = VisionSpec(QWEN2_5_VL, 14, 2, 2, image_pixels=(3136, 12845056), video_pixels=(3136, 12845056))
    plan = plan_video(settings.fill({"video": "a.mp4"}), VideoInfo(300, 30.0, 1080, 1920), spec)
    assert len(plan.indices) == frames
    assert (plan.indices[0], plan.indices[-1]) == (0, 299)
    assert (plan.height, plan.width) == size
    assert plan.tokens == tokens
    assert plan.sampled_fps == pytest.approx(frames / 10)


def test_grid_timestamps_match_hand_computed_midpoints():
    # 8 frames at 4 fps, 4 of them: indices 0, 2, 5, 7 (7 / 3 = 2.33 -> 2, 14 / 3 = 4.67 -> 5), seconds 0, 0.5, 1.25,
    # 1.75: the grids' middles are 0.25 and 1.5.
    spec = VisionSpec(QWEN3_VL, 16, 2, 2, (65536, 16777216), (4096, 25165824))
    plan = plan_video({"video": "a.mp4", "nframes": 4}, VideoInfo(8, 4.0, 300, 300), spec)
    assert plan.indices == (0, 2, 5, 7)
    assert plan.timestamps == (0.25, 1.5)
    # With three frames a grid, the last grid holds frame 7 thrice: (0 + 1.25) / 2 and 1.75.
    assert plan_video(
        {"video": "a.mp4", "nframes": 4}, VideoInfo(8, 4.0, 300, 300), replace(spec, temporal_patch_size=3)
    ).timestamps == (0.625, 1.75)


@pytest.mark.parametrize(
    ("element", "filled"),
    [
        ({}, {"fps": 2.0, "min_frames": 4, "max_frames": 16, "min_pixels": 100352, "max_pixels": 100352}),
        ({"nframes": 8}, {"nframes": 8, "min_pixels": 100352, "max_pixels": 100352}),
        (
            {"fps": None, "max_pixels": 784},
            {"fps": 2.0, "min_frames": 4, "max_frames": 16, "min_pixels": 784, "max_pixels": 784},
        ),
        ({"nframes": 8, "min_pixels": 200704}, {"nframes": 8, "min_pixels": 200704, "max_pixels": 200704}),
        (
            {"min_frames": 20, "resized_height": 56, "resized_width": 56},
            {"fps": 2.0, "min_frames": 20, "max_frames": 20, "resized_height": 56, "resized_width": 56},
        ),
    ],
    ids=str,
)
def test_fields_of_media_element_override_settings(element, filled):
    assert TRAINING.fill({"video": "a.mp4", **element}) == {"video": "a.mp4", **filled}


def test_settings_fill_images_and_leave_text_elements_alone():
    assert MediaSettings(image_max_pixels=784).fill({"image": "a.png"}) == {"image": "a.png", "max_pixels": 784}
    sized = {"image": "a.png", "resized_height": 28, "resized_width": 28}
    assert TRAINING.fill(sized) == sized
    assert TRAINING.fill({"type": "text", "text": "video"}) == {"type": "text", "text": "video"}
