# SPDX-License-Identifier: Apache-2.0
"""verl's agent loop with media processed once for a prompt and with true positions.

Named in `rollout.agent.agent_loop_manager_class`. In verl a prompt with n rollouts costs n decodes, 3 n calls of the
processor (two thirds of them on the worker's event loop) and 2 n copies of its pixels in TransferQueue.
"""

import asyncio
import functools
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray
import torch
from torch import Tensor
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils.tokenizer import build_multimodal_processor_inputs
from verl.workers.rollout.utils import get_vision_placeholder_token_ids

from verl_p2r.media.families import family_of_processor
from verl_p2r.plugin.media.media_cache import THREADS, cache_of, cache_settings
from verl_p2r.plugin.media.pixels import PixelStore, Recipe, SharedInputs
from verl_p2r.plugin.media.position_ids import qwen_position_ids
from verl_p2r.plugin.media.sharing import Processed, SharingProcessor

logger = logging.getLogger(__name__)


_Worker: Any = AgentLoopWorkerTQ.__ray_actor_class__  # type: ignore[attr-defined]


class P2RAgentLoopWorker(_Worker):
    """verl's worker with our processor and our positions; verl puts grids of Qwen2.5-VL one second apart."""

    processor: Any

    # Ray sends inherited methods of an actor class by value, and a copy of verl's `__init__` would carry a copy of its
    # class for `super()`. A method defined here is sent by reference.
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._media = cache_of(self.config.data)
        self._pixels = PixelStore(cache_settings(self.config.data).pixels_bytes)
        if family_of_processor(self.processor):  # pixels of other families may depend on the text
            sglang = self.rollout_config.name == "sglang"
            self.processor = SharingProcessor(self.processor, self._media, self._pixels, return_pixels=sglang)
        self._name = ray.get_runtime_context().get_actor_name() or ""
        # Rollouts wait in threads while their prompt is processed; enough threads for the rollouts of other prompts.
        self._threads = ThreadPoolExecutor(max_workers=self.rollout_config.n * THREADS)

    async def generate_sequences(self, batch: Any) -> None:
        """Roll out a batch of prompts."""
        asyncio.get_running_loop().set_default_executor(self._threads)
        await super().generate_sequences(batch)

    async def pixels(self, recipe: Recipe) -> list:
        """Find or make the pixels of a row.

        Args:
            recipe: what they are made of.

        Returns:
            Their `ray.ObjectRef` in a list; for a bare reference Ray would send the pixels themselves.

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

    @functools.cache  # noqa: B019  warns once; a worker lives as long as its process
    def _warn_of_evictions(self) -> None:
        logger.warning(
            "a prompt's pixels were evicted before the trainer read them and are made again, which is slow: raise "
            "data.p2r.media_cache.pixels_gib, unless this run was resumed"
        )

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> None:
        outputs = output if isinstance(output, list) else [output]
        for one in outputs:
            self._refuse_placeholders(one)
        await super()._agent_loop_postprocess(output, validate, **kwargs)
        if validate:  # nothing is computed from the pixels of a validation
            for one in outputs:
                if (processed := self._processed(one)) is not None:
                    self._pixels.drop(processed.recipe)

    def _refuse_placeholders(self, output: Any) -> None:
        """Fail a rollout whose model wrote a vision placeholder.

        The forward pass would look for its pixels and end the run. verl bans these tokens in vLLM's sampling, but not
        in SGLang's.
        """
        if self.processor is None:
            return
        generated = {t for t, by_model in zip(output.response_ids, output.response_mask, strict=True) if by_model}
        if found := generated.intersection(get_vision_placeholder_token_ids(self.processor)):
            raise ValueError(f"the response holds the vision placeholders {sorted(found)}, which stand for no medium")

    def _processed(self, output: Any) -> Processed | None:
        media = output.multi_modal_data or {}
        if not isinstance(self.processor, SharingProcessor) or media.get("audios"):
            return None
        return self.processor.processed(media.get("images"), media.get("videos"))

    def _compute_multi_modal_inputs(self, output: Any, input_ids: Any) -> Mapping[str, Any]:
        output.mm_processor_output = None  # SGLang's request had it; nothing reads it from TransferQueue
        if (processed := self._processed(output)) is None:
            inputs = super()._compute_multi_modal_inputs(output, input_ids)
            if (processed := self._processed(output)) is None:
                return inputs
        return SharedInputs(processed.small, processed.names, processed.recipe, worker=self._name)

    def _compute_position_ids(
        self, input_ids: Tensor, attention_mask: Tensor, multi_modal_inputs: Any, mm_processor_kwargs: Any = None
    ) -> Tensor:
        real = attention_mask[0].bool()
        plain = getattr(self.processor, "__wrapped__", self.processor)
        positions = None
        if plain is not None:
            positions = qwen_position_ids(plain, input_ids[0][real], multi_modal_inputs)
        if positions is None:
            return super()._compute_position_ids(input_ids, attention_mask, multi_modal_inputs, mm_processor_kwargs)
        multi_modal_inputs.pop("mm_token_type_ids", None)  # as verl does; it is used for positions only
        padded = torch.ones(1, len(positions), input_ids.shape[1], dtype=torch.long)
        padded[0][:, real] = positions
        return padded


class P2RAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with our worker."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(P2RAgentLoopWorker)
