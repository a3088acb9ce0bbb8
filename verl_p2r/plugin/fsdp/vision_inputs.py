# SPDX-License-Identifier: Apache-2.0
"""The media of a micro-batch: each distinct one once, and which feature belongs at which placeholder."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import NonTensorData
from torch import Tensor

from verl_p2r.plugin.media.pixels import SharedInputs

PIXELS_AND_GRIDS = (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw"))
_PROBES = 64  # values of a tensor that are compared before all of them are


class VisionInputs:
    """Everything a model's vision tower needs for one micro-batch.

    Not a dataclass: FSDP1 takes the dataclasses among a module's arguments apart.

    Args:
        pixels: patches of all distinct images and videos, or None. Shape: (patches, width).
        grids: grids (t, h, w) of the same. Shape: (media, 3), int64.
        index: the feature of each placeholder, in the order of the sequence. Shape: (placeholders,), int64.
    """

    def __init__(self, pixels: Tensor | None, grids: Tensor | None, index: Tensor):
        self.pixels, self.grids, self.index = pixels, grids, index


def media_rows(batch: Any) -> list[Mapping[str, Tensor]]:
    """Give the media of each row of a batch; a row without media has an empty mapping.

    Args:
        batch: verl's TensorDict; without `multi_modal_inputs` no row has media.
    """
    rows = batch.get("multi_modal_inputs", None)
    if rows is None:
        return [{}] * len(batch)
    return [(row.data if isinstance(row, NonTensorData) else row) or {} for row in list(rows)]


def distinct_media(rows: Sequence[Mapping[str, Tensor]]) -> tuple[list[int], list[int]]:
    """Find the rows with equal media, by their sources where pixels are shared, else by the values themselves.

    Args:
        rows: the media of each row.

    Returns:
        (the first row of each distinct set of media, the number of each row's set).
    """
    first: list[int] = []
    kind: list[int] = []
    alike: dict[object, list[int]] = {}
    for n, row in enumerate(rows):
        candidates = alike.setdefault(_signature(row), [])
        found = next((k for k in candidates if _equal(rows[first[k]], row)), None)
        if found is None:
            found = len(first)
            first.append(n)
            candidates.append(found)
        kind.append(found)
    return first, kind


def _signature(row: Mapping[str, Tensor]) -> object:
    if isinstance(row, SharedInputs):
        return row.media
    parts = []
    for pixels, grids in PIXELS_AND_GRIDS:
        values, grid = row.get(pixels), row.get(grids)
        if values is not None:
            flat = values.reshape(-1)
            probe = flat[:: max(1, len(flat) // _PROBES)].tolist()
            parts.append((pixels, values.shape, tuple(map(tuple, grid.tolist())), tuple(probe)))
    return tuple(parts)


def _equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    if isinstance(left, SharedInputs) or isinstance(right, SharedInputs):
        return type(left) is type(right)  # their sources are their signature
    return all(left.get(name) is None or torch.equal(left[name], right[name]) for name, _ in PIXELS_AND_GRIDS)


class MicroBatchMedia:
    """The distinct media of some rows.

    Args:
        ids: token ids of each row, on the CPU. Shape: (L,), int64.
        rows: media of each row.
        config: the model's config: its placeholder tokens and merge size.

    Attributes:
        places: for each row the feature of each token, -1 where it is not a placeholder. Shape: (L,), int64.

    Raises:
        ValueError: a row has another number of placeholders than of features.
    """

    def __init__(self, ids: Sequence[Tensor], rows: Sequence[Mapping[str, Tensor]], config: Any):
        first, kind = distinct_media(rows)
        area = config.vision_config.spatial_merge_size**2
        tokens = (config.image_token_id, config.video_token_id)
        pixels, grids, spans, cursor = [], [], [], 0
        for row in first:
            of_kind = []
            for name, grid_name in PIXELS_AND_GRIDS:
                values = rows[row].get(name)
                count = 0 if values is None else len(values) // area
                of_kind.append((cursor, count))
                cursor += count
                if values is not None:
                    pixels.append(values)
                    grids.append(rows[row][grid_name])
            spans.append(of_kind)
        self._pixels, self._grids = pixels, grids
        self.places = [_places(row, n, spans[k], tokens) for n, (row, k) in enumerate(zip(ids, kind, strict=True))]

    def inputs(self, places: Tensor, device: Any) -> VisionInputs:
        """Build the tower's inputs for a sequence.

        Args:
            places: feature of each token of the sequence, -1 for none. Shape: any.
            device: where the model computes.
        """
        index = places[places >= 0].to(device)
        if not self._pixels:
            return VisionInputs(None, None, index)
        # Pixels stay here until the tower takes them: on the device they would share its memory with the logits.
        return VisionInputs(torch.cat(self._pixels), torch.cat(self._grids).to(device), index)


def _places(ids: Tensor, row: int, spans: Sequence[tuple[int, int]], tokens: Sequence[int]) -> Tensor:
    places = torch.full(ids.shape, -1, dtype=torch.int64)
    for (start, count), token, name in zip(spans, tokens, ("image", "video"), strict=True):
        mask = ids == token
        if int(mask.sum()) != count:
            raise ValueError(
                f"row {row} of a micro-batch has {int(mask.sum())} {name} placeholders, but its media give {count} "
                "features: prompt and media do not match"
            )
        places[mask] = torch.arange(start, start + count)
    return places
