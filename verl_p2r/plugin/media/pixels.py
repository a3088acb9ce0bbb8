# SPDX-License-Identifier: Apache-2.0
"""Processed pixels, made once for a prompt and never put into TransferQueue.

A row of TransferQueue carries a `SharedInputs`: the small tensors, and how to get the pixels. The pixels are in Ray's
object store: in node-local shared memory, spilled to disk when it is full, and copied to other nodes on request. They
may be lost, because the agent loop worker (after a resume, any worker) makes them again.
"""

import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import cachetools
import numpy as np
import ray
import torch
from torch import Tensor

from verl_p2r.plugin.media.media_cache import Source

PIXELS = ("pixel_values", "pixel_values_videos")  # the processor's outputs that are large
WORKER_PREFIX = "agent_loop_worker_"  # verl's name for its workers


@dataclass(frozen=True)
class Recipe:
    """What pixels are made of.

    Args:
        text: text of the prompt that was processed with them.
        images: sources of the images.
        videos: sources of the videos.
    """

    text: tuple[str, ...]
    images: tuple[Source, ...]
    videos: tuple[Source, ...]

    @property
    def media(self) -> tuple[Source, ...]:
        """All sources; equal sources have equal pixels."""
        return self.images + self.videos


class SharedInputs(MutableMapping):
    """`multi_modal_inputs` of one row, a mapping for verl's engines that loads its pixels when they are read.

    Args:
        small: the processor's outputs that travel with the row (grids, seconds per grid).
        names: the outputs that stay in the store.
        recipe: what these are made of.
        worker: name of the agent loop worker that has them.
    """

    def __init__(self, small: Mapping[str, Tensor], names: tuple[str, ...], recipe: Recipe, worker: str):
        self._small, self._names, self._recipe, self._worker = dict(small), names, recipe, worker

    __eq__, __hash__ = object.__eq__, object.__hash__  # Mapping's own would load the pixels

    @property
    def media(self) -> tuple[Source, ...]:
        """The sources of the pixels; rows with equal sources have equal pixels."""
        return self._recipe.media

    def __getitem__(self, name: str) -> Tensor:
        if name in self._names:
            return load(self._worker, self._recipe)[name]
        return self._small[name]

    def __contains__(self, name: object) -> bool:  # Mapping's own would load the pixels
        return name in self._names or name in self._small

    def __iter__(self) -> Iterator[str]:
        yield from self._small
        yield from self._names

    def __len__(self) -> int:
        return len(self._small) + len(self._names)

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._small[name] = value

    def __delitem__(self, name: str) -> None:
        del self._small[name]


class PixelStore:
    """A worker's pixels in Ray's object store.

    Args:
        max_bytes: limit for the pixels kept; the least recently used are dropped first.
    """

    def __init__(self, max_bytes: int):
        self._kept: cachetools.LRUCache[tuple[Source, ...], tuple[int, Any]] = cachetools.LRUCache(
            max_bytes, getsizeof=lambda entry: entry[0]
        )
        self._lock = Lock()

    def put(self, recipe: Recipe, pixels: Mapping[str, Tensor]) -> Any:
        """Store a prompt's pixels.

        Args:
            recipe: what they are made of.
            pixels: the outputs by name.

        Returns:
            Their `ray.ObjectRef`.

        Raises:
            ValueError: they alone exceed `max_bytes`.
        """
        arrays = {name: np.asarray(values) for name, values in pixels.items()}
        size = sum(array.nbytes for array in arrays.values())
        if size > self._kept.maxsize:
            raise ValueError(
                f"the pixels of one prompt take {size} bytes, more than the {self._kept.maxsize:.0f} that "
                "data.p2r.media_cache.pixels_gib allows in all: raise it, or take fewer or smaller frames"
            )
        reference = ray.put(arrays)
        with self._lock:
            self._kept[recipe.media] = (size, reference)
        return reference

    def get(self, recipe: Recipe) -> Any | None:
        """Return the pixels' `ray.ObjectRef`, or None when they are not stored."""
        with self._lock:
            return self._kept.get(recipe.media, (0, None))[1]

    def drop(self, recipe: Recipe) -> None:
        """Forget a prompt's pixels."""
        with self._lock:
            self._kept.pop(recipe.media, None)


@lru_cache(maxsize=4)  # rows of a group are often adjacent in a batch
def load(worker: str, recipe: Recipe) -> dict[str, Tensor]:
    """Load a prompt's pixels, zero-copy from this node's shared memory. They must not be written to.

    Args:
        worker: the agent loop worker to ask; if it no longer exists (after a resume), another one is asked.
        recipe: what they are made of.

    Raises:
        RuntimeError: no agent loop worker exists.
    """
    [reference] = ray.get(_worker(worker).pixels.remote(recipe))
    return tensors(reference)


def tensors(reference: Any, copy: bool = False) -> dict[str, Tensor]:
    """Read pixels from Ray's object store.

    Args:
        reference: their `ray.ObjectRef`.
        copy: return writable copies instead of views of shared memory.
    """
    arrays = ray.get(reference)
    if copy:
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _worker(name: str) -> Any:
    with suppress(ValueError):  # it no longer exists
        return ray.get_actor(name)
    for other in ray.util.list_named_actors():
        if other.startswith(WORKER_PREFIX):
            with suppress(ValueError):
                return ray.get_actor(other)
    raise RuntimeError(f"the pixels of a row were made by {name}, and no agent loop worker is alive to make them again")
