# SPDX-License-Identifier: Apache-2.0
"""verl's four rows of position ids for the known model families, from true frame times."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from verl_p2r.media.families import Family, Time, family_of_processor
from verl_p2r.media.positions import guarded_seconds_per_grid, mrope_positions


def qwen_position_ids(processor: Any, input_ids: Tensor, inputs: Mapping[str, Any]) -> Tensor | None:
    """Compute the position ids of one unpadded sequence, as verl's actor takes them.

    Args:
        processor: the Hugging Face processor, with the model's `config` bound to it, as verl's `hf_processor` does.
        input_ids: Shape: (L,), int64.
        inputs: the processor's outputs: `image_grid_thw`, `video_grid_thw`, `second_per_grid_ts`.

    Returns:
        Text positions, then time, height and width. Shape: (4, L), int64. None for a family that is not in the table:
        verl computes its positions.

    Raises:
        ValueError: prompt and media do not match, or a video's seconds are missing.
    """
    family = family_of_processor(processor)
    if family is None:
        return None
    media = _media_in_order(family, processor, input_ids, inputs)
    vision = mrope_positions(
        input_ids,
        [grid for grid, _ in media],
        [step for _, step in media],
        placeholder_ids=[processor.image_token_id, processor.video_token_id],
        merge_size=processor.image_processor.merge_size,
    )
    return torch.cat([torch.arange(len(input_ids)).unsqueeze(0), vision])


def _media_in_order(
    family: Family, processor: Any, input_ids: Tensor, inputs: Mapping[str, Any]
) -> list[tuple[list[int], float]]:
    """(grid, temporal step) of each medium in the order of its placeholders; images and videos may alternate."""
    images = [(grid, 1.0) for grid in _rows(inputs.get("image_grid_thw"))]
    grids = _rows(inputs.get("video_grid_thw"))
    if family.time is Time.TEXT:  # each temporal grid counts as an image
        videos = [([1, h, w], 1.0) for t, h, w in grids for _ in range(t)]
    else:
        videos = list(zip(grids, _temporal_steps(family, processor, inputs, len(grids)), strict=True))
    area = processor.image_processor.merge_size**2
    placeholders = input_ids[torch.isin(input_ids, torch.tensor([processor.image_token_id, processor.video_token_id]))]
    media, cursor = [], 0
    while (images or videos) and cursor < len(placeholders):
        queue = images if placeholders[cursor] == processor.image_token_id else videos
        if not queue:
            break
        (t, h, w), step = queue.pop(0)
        media.append(([t, h, w], step))
        cursor += t * h * w // area
    if images or videos:
        raise ValueError(
            f"the prompt holds placeholders for {len(media)} media, but {len(media) + len(images) + len(videos)} were "
            "processed: prompt and media do not match"
        )
    return media


def _temporal_steps(family: Family, processor: Any, inputs: Mapping[str, Any], videos: int) -> list[float]:
    """Positions between two temporal grids of each video."""
    rate = getattr(processor.config.vision_config, "tokens_per_second", None)
    if family.time is not Time.SECONDS or rate is None or videos == 0:
        return [1.0] * videos
    seconds = inputs.get("second_per_grid_ts")
    if seconds is None:
        raise ValueError(
            "the processor gave no second_per_grid_ts for a video, so its position in time is unknown: pass the video "
            "with its metadata"
        )
    return [guarded_seconds_per_grid(float(s)) * rate for s in seconds]


def _rows(grid: Tensor | None) -> list[list[int]]:
    return [] if grid is None else grid.tolist()
