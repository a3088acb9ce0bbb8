# SPDX-License-Identifier: Apache-2.0
"""A processor that runs once for a prompt, however many rollouts ask, and leaves the pixels in Ray's object store."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import cachetools
import torch
import wrapt
from torch import Tensor
from transformers import BatchFeature

from verl_p2r.plugin.media.media_cache import THREADS, MediaCache, Source
from verl_p2r.plugin.media.pixels import PIXELS, PixelStore, Recipe, tensors

PROMPTS_KEPT = 1024  # sets of media whose small tensors, some kilobytes each, a worker keeps
_OF_TEXT = {"input_ids", "attention_mask", "mm_token_type_ids"}


@dataclass
class Processed:
    """What is kept of the processor's outputs for a set of media.

    Args:
        recipe: one of the prompts with these media.
        small: the outputs that travel with a row.
        names: the outputs that stay in the store.
        ids: the token ids of each prompt with these media, by its text.
    """

    recipe: Recipe
    small: dict[str, Tensor]
    names: tuple[str, ...]
    ids: dict[tuple[str, ...], Any] = field(default_factory=dict)


class SharingProcessor(wrapt.CallableObjectProxy):
    """A Hugging Face processor of a known family whose callers share one call for each prompt.

    The first caller for a prompt starts the call in a thread pool; the others wait for its future. A call that fails
    raises in all of them and is not remembered.

    Args:
        processor: the processor to stand in for.
        media: tells which file a decoded medium comes from; other media are processed as usual.
        store: keeps the pixels.
        return_pixels: return the pixels to the caller as well, as SGLang's requests need.
    """

    def __init__(self, processor: Any, media: MediaCache, store: PixelStore, return_pixels: bool = False):
        super().__init__(processor)
        self._self_media, self._self_store, self._self_return_pixels = media, store, return_pixels
        self._self_lock = Lock()  # guards the two mappings; never held while the processor runs
        self._self_running: dict[Recipe, Future] = {}
        self._self_done: cachetools.LRUCache[tuple[Source, ...], Processed] = cachetools.LRUCache(PROMPTS_KEPT)
        self._self_pool = ThreadPoolExecutor(THREADS, thread_name_prefix="process")  # bounds the memory in use

    def __call__(self, text: Any = None, images: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        """Process a prompt as the processor does, without the pixels unless `return_pixels`."""
        if self._self_sources(images, videos) is None or kwargs.get("audio") is not None:
            return self.__wrapped__(text=text, images=images, videos=videos, **kwargs)
        processed, pixels = self._self_once(text, images, videos, **kwargs)
        large = tensors(pixels, copy=True) if self._self_return_pixels else {}
        return BatchFeature({"input_ids": processed.ids[tuple(text)], **processed.small, **large})

    def pixels_of(self, text: Any = None, images: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        """Process a prompt unless its pixels are stored, and return their `ray.ObjectRef`."""
        return self._self_once(text, images, videos, **kwargs)[1]

    def processed(self, images: Any, videos: Any) -> Processed | None:
        """What is kept for media that were processed here, else None."""
        sources = self._self_sources(images, videos)
        if sources is None:
            return None
        with self._self_lock:
            return self._self_done.get(sources[0] + sources[1])

    def _self_once(self, text: Sequence[str], images: Any, videos: Any, **kwargs: Any) -> tuple[Processed, Any]:
        recipe = Recipe(tuple(text), *self._self_sources(images, videos))
        with self._self_lock:
            done, pixels = self._self_done.get(recipe.media), self._self_store.get(recipe)
            if done is not None and recipe.text in done.ids and pixels is not None:
                return done, pixels
            future = self._self_running.get(recipe)
            if future is None:
                inputs = {"text": text, "images": images, "videos": videos, **kwargs}
                future = self._self_running[recipe] = self._self_pool.submit(self._self_process, recipe, inputs)
                future.add_done_callback(lambda _: self._self_running.pop(recipe))
        return future.result()

    def _self_process(self, recipe: Recipe, inputs: Mapping[str, Any]) -> tuple[Processed, Any]:
        outputs = self.__wrapped__(**inputs)
        small, large = _split(outputs)
        pixels = self._self_store.put(recipe, large)  # the callers hold the reference, even if it is evicted at once
        with self._self_lock:
            done = self._self_done.get(recipe.media) or Processed(recipe, small, tuple(large))
            done.ids[recipe.text] = outputs["input_ids"]
            self._self_done[recipe.media] = done
        return done, pixels

    def _self_sources(self, images: Any, videos: Any) -> tuple[tuple[Source, ...], tuple[Source, ...]] | None:
        if not images and not videos:
            return None
        of_images, of_videos = (self._self_media.sources_of(media or ()) for media in (images, videos))
        return None if of_images is None or of_videos is None else (of_images, of_videos)


def _split(outputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The processor's outputs that travel with a row, as verl's `multi_modal_inputs` has them, and the pixels."""
    large = {name: outputs[name] for name in PIXELS if outputs.get(name) is not None}
    small = {name: value for name, value in outputs.items() if name not in _OF_TEXT | large.keys()}
    if (grid := small.get("image_grid_thw")) is not None:
        small["images_seqlens"] = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
    return small, large
