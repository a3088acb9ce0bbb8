# SPDX-License-Identifier: Apache-2.0
"""The media of a micro-batch: each distinct one once, and which feature belongs at which placeholder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import NonTensorData
from torch import Tensor

from verl_p2r.plugin.media.pixels import SharedInputs

PIXELS_AND_GRIDS = (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw"))
_PROBES = 64  # values of a tensor that are compared before all of them are


def media_rows(batch: Any) -> list[Mapping[str, Tensor]]:
    """Return the media of each row of a batch; a row without media has an empty mapping.

    Args:
        batch: verl's TensorDict; without `multi_modal_inputs` no row has media.
    """
    rows = batch.get("multi_modal_inputs", None)
    if rows is None:
        return [{}] * len(batch)
    return [(row.data if isinstance(row, NonTensorData) else row) or {} for row in list(rows)]


def distinct_media(rows: Sequence[Mapping[str, Tensor]]) -> tuple[list[int], list[int]]:
    """Find the rows with equal media: by their sources where pixels are shared, otherwise by the pixel values.

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
        if values is not None and grid is not None:
            flat = values.reshape(-1)
            probe = flat[:: max(1, len(flat) // _PROBES)].tolist()
            parts.append((pixels, values.shape, tuple(map(tuple, grid.tolist())), tuple(probe)))
    return tuple(parts)


def _equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    if isinstance(left, SharedInputs) or isinstance(right, SharedInputs):
        return type(left) is type(right)  # rows with shared pixels compare by their sources, in the signature
    return all(left.get(name) is None or torch.equal(left[name], right[name]) for name, _ in PIXELS_AND_GRIDS)


class MediaSet:
    """The images and videos of one row, and the features that the vision tower makes of them.

    Pixels are read only when the tower needs them: reading shared pixels copies them from another process.

    Args:
        row: the row's media.
        area: patches that are merged into one feature.

    Attributes:
        counts: number of features of the images, and of the videos.
        features: what the tower made, and what it made for deepstack; None until then. Each Shape: (features, width).
    """

    def __init__(self, row: Mapping[str, Tensor], area: int):
        self.row = row
        self._used = [(pixels, grids) for pixels, grids in PIXELS_AND_GRIDS if pixels in row]
        used = dict(self._used)
        self.counts = [int(row[used[p]].prod(-1).sum()) // area if p in used else 0 for p, _ in PIXELS_AND_GRIDS]
        self.features: list[Tensor] | None = None

    def pixels(self) -> list[Tensor]:
        """Read the patches, images first. Each Shape: (patches, width)."""
        return [self.row[pixels] for pixels, _ in self._used]

    def grids(self) -> list[Tensor]:
        """Return the grids (t, h, w) in the order of the patches. Each Shape: (media, 3), int64."""
        return [self.row[grids] for _, grids in self._used]


class VisionInputs:
    """What a model's vision tower needs for one micro-batch.

    Not a dataclass: FSDP1 takes the dataclasses among a module's arguments apart.

    Args:
        sets: the distinct sets of media, without empty ones.
        index: the feature of each placeholder, in the order of the sequence. Shape: (placeholders,), int64.
        calls_tower: whether the tower is called, on one blank image if no set is without features.
        keep: called with each set whose features the tower made.
    """

    def __init__(
        self,
        sets: Sequence[MediaSet],
        index: Tensor,
        calls_tower: bool = True,
        keep: Callable[[MediaSet], None] = lambda one: None,
    ):
        self.sets, self.index, self.calls_tower, self._keep = sets, index, calls_tower, keep
        self._missing = [one for one in sets if one.features is None]

    def missing(self) -> tuple[Tensor, Tensor] | None:
        """Return patches and grids of the sets without features, or None when all have theirs.

        Returns:
            (Shape: (patches, width), Shape: (media, 3)).
        """
        if not self._missing:
            return None
        # Pixels stay in host memory until the tower takes them: on the device they would compete with the logits.
        pixels = torch.cat([values for one in self._missing for values in one.pixels()])
        return pixels, torch.cat([grid for one in self._missing for grid in one.grids()])

    def receive(self, made: Sequence[Tensor]) -> None:
        """Take what the tower made of the sets without features.

        Args:
            made: the features, and those for deepstack. Each Shape: (features, width).
        """
        parts = [values.split([sum(one.counts) for one in self._missing]) for values in made]
        for n, one in enumerate(self._missing):
            one.features = [part[n] for part in parts]
            self._keep(one)

    def at_placeholders(self, device: Any) -> list[Tensor]:
        """Return the features that replace the placeholders, and those for deepstack.

        Args:
            device: where the model computes.

        Returns:
            Each Shape: (placeholders, width).
        """
        made = [one.features for one in self.sets if one.features is not None]
        whole = [torch.cat([part.to(device) for part in parts]) for parts in zip(*made, strict=True)]
        return [features.index_select(0, self.index) for features in whole]


class MicroBatchMedia:
    """The distinct media of some rows.

    Args:
        ids: token ids of each row, on the CPU. Shape: (L,), int64.
        rows: media of each row.
        config: the model's config: its placeholder tokens and merge size.

    Attributes:
        sets: the distinct sets of media, without empty ones.
        places: for each row the feature of each token, -1 where it is not a placeholder. Shape: (L,), int64.

    Raises:
        ValueError: the number of a row's placeholders is not the number of its features.
    """

    def __init__(self, ids: Sequence[Tensor], rows: Sequence[Mapping[str, Tensor]], config: Any):
        first, kind = distinct_media(rows)
        area = config.vision_config.spatial_merge_size**2
        tokens = (config.image_token_id, config.video_token_id)
        sets, spans, cursor = [MediaSet(rows[row], area) for row in first], [], 0
        for one in sets:
            images, videos = one.counts
            spans.append([(cursor, images), (cursor + images, videos)])
            cursor += images + videos
        self.sets = [one for one in sets if any(one.counts)]
        self.places = [_places(row, n, spans[k], tokens) for n, (row, k) in enumerate(zip(ids, kind, strict=True))]


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
