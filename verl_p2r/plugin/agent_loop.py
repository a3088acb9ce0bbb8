# SPDX-License-Identifier: Apache-2.0
"""verl's agent loop with the trainer's positions set right; named by `rollout.agent.agent_loop_manager_class`."""

from typing import Any

import cachetools
import ray
import torch
from torch import Tensor
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ

from verl_p2r.plugin.mrope import FAMILY, qwen2_position_ids
from verl_p2r.plugin.rl_dataset import PROMPTS_KEPT


class P2RAgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):
    """verl's worker, whose stock positions put every temporal grid of Qwen2.5-VL one second apart."""

    # Ray sends inherited methods of a class that is itself an actor by value, and a by-value copy of verl's `__init__`
    # carries a copy of its class for `super()`. A method of ours is sent by reference.
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._processed: cachetools.LRUCache[tuple, tuple] = cachetools.LRUCache(PROMPTS_KEPT)

    def _compute_multi_modal_inputs(self, output, input_ids) -> dict[str, Any]:
        """verl runs the processor twice for each rollout; what it makes of a prompt's media is the same each time."""
        media = output.multi_modal_data or {}
        objects = [medium for kind in sorted(media) for medium in media[kind]]
        if not objects or type(self.processor).__name__ not in FAMILY:
            return super()._compute_multi_modal_inputs(output, input_ids)
        key = (*map(id, objects), repr(output.mm_processor_kwargs))
        if key not in self._processed:  # an entry keeps its objects alive, so that no other can take their ids
            self._processed[key] = (super()._compute_multi_modal_inputs(output, input_ids), objects)
        return dict(self._processed[key][0])

    def _compute_position_ids(
        self, input_ids: Tensor, attention_mask: Tensor, multi_modal_inputs, mm_processor_kwargs=None
    ) -> Tensor:
        real = attention_mask[0].bool()
        positions = None
        if self.processor is not None:
            positions = qwen2_position_ids(self.processor, input_ids[0][real], multi_modal_inputs)
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
