# SPDX-License-Identifier: Apache-2.0
"""Which rows have equal media: by value, never by identity."""

import pytest
import torch

from verl_p2r.plugin.fsdp.vision_inputs import distinct_media
from verl_p2r.plugin.media.media_cache import Source
from verl_p2r.plugin.media.pixels import Recipe, SharedInputs


def pixels(seed: int, grid=(1, 4, 4)) -> dict[str, torch.Tensor]:
    values = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": values, "image_grid_thw": torch.tensor([grid])}


def shared(path: str, text: str = "a question") -> SharedInputs:
    source = Source("video", path, 14)
    return SharedInputs(
        {"video_grid_thw": torch.tensor([[1, 4, 4]])},
        ("pixel_values_videos",),
        Recipe((text,), (), (source,)),
        "worker",
    )


def test_media_are_equal_only_if_every_value_is_equal():
    close = pixels(0)
    close["pixel_values"][3, 5] += 1e-6  # not among the values that are probed first
    rows = [pixels(0), pixels(1), pixels(0), {}, close, pixels(0, (1, 2, 8)), {}]
    assert distinct_media(rows) == ([0, 1, 3, 4, 5], [0, 1, 0, 2, 3, 4, 2])


def test_shared_pixels_are_compared_by_their_sources_and_never_loaded():
    rows = [shared("a.mp4"), shared("b.mp4"), shared("a.mp4", "another question"), pixels(0)]
    assert distinct_media(rows) == ([0, 1, 3], [0, 1, 0, 2])  # no worker is there to load from


@pytest.mark.parametrize("kind", ["pixel_values", "pixel_values_videos"])
def test_image_and_video_with_same_pixels_are_distinct_media(kind):
    image = pixels(0)
    video = {"pixel_values_videos": image["pixel_values"], "video_grid_thw": image["image_grid_thw"]}
    assert distinct_media([image, video])[1] == [0, 1]
    assert distinct_media(
        [{**image, **video}, {kind: image["pixel_values"]} | (image if kind == "pixel_values" else video)]
    )[1] == [0, 1]
