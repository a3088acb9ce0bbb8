# SPDX-License-Identifier: Apache-2.0
"""verl's agent loop, with media processed once for a prompt and positions set right.

Named by `rollout.agent.agent_loop_manager_class`. On verl's path a prompt with n rollouts costs n decodes and 3 n calls
of the processor, two thirds of them on the worker's event loop, and 2 n copies of its pixels in TransferQueue.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
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

from verl_p2r.plugin.media_cache import THREADS, MediaCache, cache_of, cache_settings
from verl_p2r.plugin.mrope import qwen_position_ids
from verl_p2r.plugin.pixels import PixelStore, Recipe, SharedInputs, split

PROMPTS_KEPT = 4096  # whose small tensors, some kilobytes each, a worker remembers


class SharingProcessor(wrapt.CallableObjectProxy):
    """A Hugging Face processor that runs once for a prompt, and gives the pixels to the store, not to its caller.

    Args:
        processor: the processor to stand in for.
        media: knows what decoded media were decoded from; unknown ones are processed as ever.
        store: takes the pixels.
        return_pixels: give them to the caller, too: SGLang's requests carry them.
    """

    def __init__(self, processor: Any, media: MediaCache, store: PixelStore, return_pixels: bool = False):
        super().__init__(processor)
        self._self_media, self._self_store, self._self_return_pixels = media, store, return_pixels
        self._self_small: cachetools.LRUCache[Recipe, dict] = cachetools.LRUCache(PROMPTS_KEPT)
        self._self_shared: cachetools.LRUCache[tuple, tuple] = cachetools.LRUCache(PROMPTS_KEPT)
        # One prompt's callers queue up at one lock: the first processes, the others find. Striped, to stay few.
        self._self_locks = [Lock() for _ in range(64)]

    def __call__(self, text=None, images=None, videos=None, **kwargs) -> Any:
        call = partial(self.__wrapped__, text=text, images=images, videos=videos, **kwargs)
        media = self._self_sources(images, videos)
        if media is None or kwargs.get("audio") is not None:
            return call()
        recipe = Recipe(tuple(text), *media)
        with self._self_locks[hash(recipe) % len(self._self_locks)]:
            small, pixels = self._self_small.get(recipe), self._self_store.get(recipe)
            if small is None or pixels is None:
                small, large = split(call())
                pixels = self._self_store.put(recipe, large)
                self._self_small[recipe] = small
                self._self_shared[recipe.media] = (_of_media(small), tuple(large), recipe)
        return BatchFeature({**small, **(ray.get(pixels) if self._self_return_pixels else {})})

    def shared(self, images, videos) -> tuple[dict[str, Tensor], tuple[str, ...], Recipe] | None:
        """What `SharedInputs` takes, for media that were processed here."""
        media = self._self_sources(images, videos)
        return media and self._self_shared.get(media[0] + media[1])

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
        if self.processor is not None:
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
                self.processor,
                text=list(recipe.text),
                images=images or None,
                videos=videos or None,
                mm_processor_kwargs=self._get_mm_processor_kwargs(),
            )
            await asyncio.get_running_loop().run_in_executor(self._threads, again)
            reference = self._pixels.get(recipe)
        return [reference]

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
        if self.processor is None or media.get("audios"):
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


def _of_media(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The small outputs as verl puts them into `multi_modal_inputs`: those of the text out, images' lengths in."""
    inputs = {name: value for name, value in outputs.items() if name not in ("input_ids", "attention_mask")}
    if (grid := inputs.get("image_grid_thw")) is not None:
        inputs["images_seqlens"] = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
    return inputs
