# SPDX-License-Identifier: Apache-2.0
"""verl's agent loop, with media processed once for a prompt and positions set right.

Named by `rollout.agent.agent_loop_manager_class`. On verl's path a prompt with n rollouts costs n decodes and 3 n calls
of the processor, two thirds of them on the worker's event loop, and 2 n copies of its pixels in TransferQueue.
"""

import asyncio
import functools
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import BoundedSemaphore, Lock
from typing import Any

import cachetools
import ray
import torch
import wrapt
from torch import Tensor
from transformers import BatchFeature
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils.tokenizer import build_multimodal_processor_inputs
from verl.workers.rollout.utils import get_vision_placeholder_token_ids

from verl_p2r.media.families import family_of_processor
from verl_p2r.plugin.media.media_cache import THREADS, MediaCache, cache_of, cache_settings
from verl_p2r.plugin.media.pixels import PIXELS, PixelStore, Recipe, SharedInputs, tensors
from verl_p2r.plugin.media.position_ids import qwen_position_ids

logger = logging.getLogger(__name__)

PROMPTS_KEPT = 1024  # whose small tensors, some kilobytes each, a worker remembers


class SharingProcessor(wrapt.CallableObjectProxy):
    """A Qwen-VL processor that runs once for a prompt, and gives the pixels to the store, not to its caller.

    Args:
        processor: the processor to stand in for.
        media: knows what decoded media were decoded from; unknown ones are processed as ever.
        store: takes the pixels.
        return_pixels: give them to the caller, too: SGLang's requests carry them.
    """

    def __init__(self, processor: Any, media: MediaCache, store: PixelStore, return_pixels: bool = False):
        super().__init__(processor)
        self._self_media, self._self_store, self._self_return_pixels = media, store, return_pixels
        self._self_ids: cachetools.LRUCache[Recipe, Any] = cachetools.LRUCache(PROMPTS_KEPT)
        self._self_shared: cachetools.LRUCache[tuple, tuple] = cachetools.LRUCache(PROMPTS_KEPT)
        self._self_lock = Lock()  # of the two, which threads share; never held while the processor runs
        # One prompt's callers queue up at one lock: the first processes, the others find. Striped, to stay few.
        self._self_prompts = [Lock() for _ in range(64)]
        self._self_slots = BoundedSemaphore(THREADS)  # for what processing needs of memory

    def __call__(self, text=None, images=None, videos=None, **kwargs) -> Any:
        media = self._self_sources(images, videos)
        if media is None or kwargs.get("audio") is not None:
            return self.__wrapped__(text=text, images=images, videos=videos, **kwargs)
        ids, (small, *_), pixels = self._once(text, images, videos, **kwargs)
        return BatchFeature(
            {"input_ids": ids, **small, **(tensors(pixels, copy=True) if self._self_return_pixels else {})}
        )

    def pixels_of(self, text=None, images=None, videos=None, **kwargs) -> Any:
        """Process media if need be, and say where their pixels lie: a `ray.ObjectRef`."""
        return self._once(text, images, videos, **kwargs)[-1]

    def _once(self, text, images, videos, **kwargs) -> tuple[Any, tuple, Any]:
        recipe = Recipe(tuple(text), *self._self_sources(images, videos))
        with self._self_prompts[hash(recipe) % len(self._self_prompts)]:
            with self._self_lock:
                ids, shared = self._self_ids.get(recipe), self._self_shared.get(recipe.media)
            pixels = self._self_store.get(recipe)
            if ids is None or shared is None or pixels is None:
                with self._self_slots:
                    outputs = self.__wrapped__(text=text, images=images, videos=videos, **kwargs)
                ids, shared, large = _split(outputs, recipe)
                pixels = self._self_store.put(recipe, large)  # kept by who asked, even if it is evicted at once
                with self._self_lock:
                    self._self_ids[recipe], self._self_shared[recipe.media] = ids, shared
        return ids, shared, pixels

    def shared(self, images, videos) -> tuple[dict[str, Tensor], tuple[str, ...], Recipe] | None:
        """What `SharedInputs` takes, for media that were processed here."""
        media = self._self_sources(images, videos)
        if media is None:
            return None
        with self._self_lock:
            return self._self_shared.get(media[0] + media[1])

    def _self_sources(self, images, videos):
        if not images and not videos:
            return None
        media = self._self_media.sources_of(images or ()), self._self_media.sources_of(videos or ())
        return None if None in media else media


class P2RAgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):
    """verl's worker, whose stock positions put every temporal grid of Qwen2.5-VL one second apart."""

    # Ray sends inherited methods of a class that is itself an actor by value, and a by-value copy of verl's `__init__`
    # carries a copy of its class for `super()`. A method of ours is sent by reference.
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._media = cache_of(self.config.data)
        self._pixels = PixelStore(cache_settings(self.config.data).pixels_bytes)
        if family_of_processor(self.processor):  # another family's pixels may depend on the text
            sglang = self.rollout_config.name == "sglang"
            self.processor = SharingProcessor(self.processor, self._media, self._pixels, return_pixels=sglang)
        self._name = ray.get_runtime_context().get_actor_name() or ""
        # The rollouts of a prompt wait in threads while the first processes it: there are enough for other prompts.
        self._threads = ThreadPoolExecutor(max_workers=self.rollout_config.n * THREADS)

    async def generate_sequences(self, batch) -> None:
        asyncio.get_running_loop().set_default_executor(self._threads)
        await super().generate_sequences(batch)

    async def pixels(self, recipe: Recipe) -> list:
        """Where a row's pixels lie in Ray's object store, in a list (Ray would send the pixels of a bare reference).

        Raises:
            MediaError: they were evicted, and a file cannot be decoded again.
        """
        if (reference := self._pixels.get(recipe)) is None:
            images, videos = [
                await asyncio.gather(*map(self._media.fetch, sources)) for sources in (recipe.images, recipe.videos)
            ]
            again = partial(
                build_multimodal_processor_inputs,
                self.processor.pixels_of,
                text=list(recipe.text),
                images=images or None,
                videos=videos or None,
                mm_processor_kwargs=self._get_mm_processor_kwargs(),
            )
            reference = await asyncio.get_running_loop().run_in_executor(self._threads, again)
            self._warn_of_evictions()
        return [reference]

    @functools.cache  # noqa: B019  once a worker, which lives as long as its process
    def _warn_of_evictions(self) -> None:
        logger.warning(
            "a prompt's pixels were evicted before the trainer read them, and are made again, which is slow: raise "
            "data.p2r.media_cache.pixels_gib if this is no resumed run"
        )

    async def _agent_loop_postprocess(self, output, validate, **kwargs) -> None:
        outputs = output if isinstance(output, list) else [output]
        for one in outputs:
            self._refuse_placeholders(one)
        await super()._agent_loop_postprocess(output, validate, **kwargs)
        if validate:  # nothing is computed from the pixels of a validation
            for one in outputs:
                if (shared := self._shared(one)) is not None:
                    self._pixels.drop(shared[2])

    def _refuse_placeholders(self, output) -> None:
        """Lose a rollout whose model wrote a vision placeholder: the forward pass would look for its pixels, and end
        the run. verl bans them in vLLM's sampling, but not in SGLang's."""
        if self.processor is None:
            return
        generated = {t for t, by_model in zip(output.response_ids, output.response_mask, strict=True) if by_model}
        if found := generated.intersection(get_vision_placeholder_token_ids(self.processor)):
            raise ValueError(f"the response holds the vision placeholders {sorted(found)}, which stand for no medium")

    def _shared(self, output):
        media = output.multi_modal_data or {}
        if not isinstance(self.processor, SharingProcessor) or media.get("audios"):
            return None
        return self.processor.shared(media.get("images"), media.get("videos"))

    def _compute_multi_modal_inputs(self, output, input_ids) -> Mapping[str, Any]:
        output.mm_processor_output = None  # SGLang's request had it; in TransferQueue nobody would read it
        if (shared := self._shared(output)) is None:
            inputs = super()._compute_multi_modal_inputs(output, input_ids)
            shared = self._shared(output)
            if shared is None:
                return inputs
        return SharedInputs(*shared, worker=self._name)

    def _compute_position_ids(
        self, input_ids: Tensor, attention_mask: Tensor, multi_modal_inputs, mm_processor_kwargs=None
    ) -> Tensor:
        real = attention_mask[0].bool()
        plain = getattr(self.processor, "__wrapped__", self.processor)
        positions = None
        if plain is not None:
            positions = qwen_position_ids(plain, input_ids[0][real], multi_modal_inputs)
        if positions is None:
            return super()._compute_position_ids(input_ids, attention_mask, multi_modal_inputs, mm_processor_kwargs)
        multi_modal_inputs.pop("mm_token_type_ids", None)  # as verl does: for positions only
        padded = torch.ones(1, len(positions), input_ids.shape[1], dtype=torch.long)
        padded[0][:, real] = positions
        return padded


class P2RAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with our worker."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(P2RAgentLoopWorker)


def _split(outputs: Mapping[str, Any], recipe: Recipe) -> tuple[Any, tuple, dict[str, Tensor]]:
    """A processor's outputs taken apart: the prompt's ids, what `SharedInputs` takes, and the pixels.

    Of the small outputs, those that verl puts into `multi_modal_inputs`: none of the text, and the images' lengths.
    """
    large = {name: outputs[name] for name in PIXELS if outputs.get(name) is not None}
    of_text = {"input_ids", "attention_mask", "mm_token_type_ids"}
    small = {name: value for name, value in outputs.items() if name not in of_text | large.keys()}
    if (grid := small.get("image_grid_thw")) is not None:
        small["images_seqlens"] = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
    return outputs["input_ids"], (small, tuple(large), recipe), large
