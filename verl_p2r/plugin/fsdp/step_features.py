# SPDX-License-Identifier: Apache-2.0
"""Features of a frozen vision tower, made once a step: the first pass makes them, the later passes reuse them.

With `actor.freeze_vision_tower` the tower gives the same features in the old-log-probability pass, the reference pass
and every mini-batch and epoch of the update. They stay in host memory of the process that made them, which holds the
actor and the reference of its rank, up to `trainer.p2r.vision_features_gib`. What does not fit is computed again.

A feature is found again by the weights and number formats of the tower and by the medium, never by row or order. So a
row that arrives at another rank is computed there. Features are dropped after the update and when a checkpoint is
loaded.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from verl.utils.device import get_device_id

from verl_p2r.plugin.fsdp.vision_inputs import PIXELS_AND_GRIDS, MediaSet, MicroBatchMedia, VisionInputs
from verl_p2r.plugin.fsdp.vision_tower import towers_of
from verl_p2r.plugin.media.pixels import SharedInputs
from verl_p2r.sizes import GIB


class FeatureStore:
    """Features in host memory, up to a number of bytes.

    When it is full it keeps what it has: every pass asks for the media in about the same order, and evicting the oldest
    would lose each one just before it is needed.

    Attributes:
        max_bytes: that may be kept.
    """

    def __init__(self) -> None:
        self.max_bytes = 0.0
        self._features: dict[object, list[Tensor]] = {}
        self._bytes = 0

    def get(self, key: object) -> list[Tensor] | None:
        """Return the features of a medium and those for deepstack, on the CPU; None if they are not kept."""
        return self._features.get(key)

    def put(self, key: object, features: list[Tensor]) -> None:
        """Keep a copy of features if there is room. Each Shape: (features, width)."""
        size = sum(part.nbytes for part in features)
        if key not in self._features and self._bytes + size <= self.max_bytes:
            self._features[key] = [part.detach().to("cpu", copy=True) for part in features]
            self._bytes += size

    def clear(self) -> None:
        """Drop everything."""
        self._features.clear()
        self._bytes = 0


STORE = FeatureStore()  # one for the process: actor and reference of a rank share it


class StepFeatures:
    """Mixin over `OneTowerCall`; see the module."""

    def __init__(self, model_config, engine_config, *args, **kwargs):
        self._feature_bytes = engine_config.get("vision_features_gib", 0.0) * GIB
        if engine_config.get("strategy") == "fsdp" and engine_config.get("forward_prefetch"):
            self._feature_bytes = (
                0  # FSDP1 prefetches in the order of the first pass, so every pass must call the tower
            )
        self._adapters_off = False
        super().__init__(model_config, engine_config, *args, **kwargs)

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        parts = [part for tower in towers_of(module) for part in tower.named_modules()]
        if any(isinstance(part, nn.Dropout) and part.p > 0 for _, part in parts):
            self._feature_bytes = 0  # an adapter's dropout: every pass has different features
        self._tower_has_adapters = any("lora_" in name for name, _ in parts)
        module = super()._build_fsdp_module(module)
        if self._feature_bytes:
            if not self.engine_config.forward_only:  # a process without an actor would never drop its features
                STORE.max_bytes = self._feature_bytes
            stored, computed = self.engine_config.model_dtype, self._autocast_dtype
            self._weights: object = (self.model_config.local_path, stored, computed)
        return module

    def make_vision_inputs(self, media: MicroBatchMedia, index: Tensor) -> VisionInputs:
        """Take the features that are kept, and have the tower called only if some rank has none for some medium."""
        if not self._feature_bytes:
            return super().make_vision_inputs(media, index)
        keys = {id(one): self._key(one) for one in media.sets}
        for one in media.sets:
            one.features = STORE.get(keys[id(one)])
        missing = torch.tensor(int(any(one.features is None for one in media.sets)), device=get_device_id())
        dist.all_reduce(missing, op=dist.ReduceOp.MAX)  # FSDP gathers the tower's weights on every rank or on none
        return VisionInputs(media.sets, index, bool(missing), lambda one: STORE.put(keys[id(one)], one.features or []))

    def _key(self, one: MediaSet) -> object:
        return (self._weights, self._adapters_off and self._tower_has_adapters, media_key(one.row))

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Compute the reference of LoRA; the tower's adapters, if it has any, are off as well."""
        self._adapters_off = True
        try:
            with super().disable_adapter():
                yield
        finally:
            self._adapters_off = False

    def lr_scheduler_step(self) -> float:
        """End a step's update: its features are not needed any more."""
        STORE.clear()
        return super().lr_scheduler_step()

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Load weights; if they change the tower, its features are no longer those of the reference's tower."""
        before = _local_weights(self.module) if self._feature_bytes else []
        super().load_checkpoint(*args, **kwargs)
        STORE.clear()
        after = _local_weights(self.module) if self._feature_bytes else []
        if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            self._weights = object()  # equal to nothing else


def media_key(row: Mapping[str, Tensor]) -> object:
    """Identify a row's media: by their sources where pixels are shared, otherwise by a digest of grids and pixels."""
    if isinstance(row, SharedInputs):
        return row.media
    digest = hashlib.blake2b(digest_size=16)
    for names in PIXELS_AND_GRIDS:
        for name in names:
            if name in row:
                values = row[name].detach().cpu().contiguous()
                digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
                digest.update(values.view(torch.uint8).numpy())
    return digest.digest()


def _local_weights(module: nn.Module) -> list[Tensor]:
    """Copy this rank's part of the tower's weights."""
    parameters = [p for tower in towers_of(module) for p in tower.parameters()]
    return [getattr(p, "_local_tensor", p).detach().to("cpu", copy=True) for p in parameters]
