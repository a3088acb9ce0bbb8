# SPDX-License-Identifier: Apache-2.0
"""verl's agent loop with the trainer's positions set right; named by `rollout.agent.agent_loop_manager_class`."""

import ray
import torch
from torch import Tensor
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ

from verl_p2r.plugin.mrope import qwen2_position_ids


class P2RAgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):
    """verl's worker, whose stock positions put every temporal grid of Qwen2.5-VL one second apart."""

    # Ray sends inherited methods of a class that is itself an actor by value, and a by-value copy of verl's `__init__`
    # carries a copy of its class for `super()`. A method of ours is sent by reference.
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

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
