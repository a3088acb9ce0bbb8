# SPDX-License-Identifier: Apache-2.0
"""The extension of vLLM's CPU worker that takes verl's weight buckets."""

from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension


class CPUWorkerExtension(vLLMColocateWorkerExtension):
    """Receives all weights and reloads the model with vLLM's layer-wise reload.

    vLLM-CPU prepacks linear weights and drops the originals, so `model.load_weights` fails on a live model.
    """

    model_runner: Any  # vLLM mixes this class into its worker, which has it

    def update_weights_from_ipc(self, peft_config=None, base_sync_done=False, use_shm=False):
        """Replace all weights of the model.

        Raises:
            ValueError: for a LoRA adapter, which this path does not support.
        """
        if peft_config:
            raise ValueError("LoRA weights cannot be synchronised to vLLM on a CPU: set lora_rank=0, or use a GPU.")
        weights: list[tuple[str, torch.Tensor]] = []
        receiver = BucketedWeightReceiver(
            zmq_handle=self._get_zmq_handle(), device=torch.device("cpu"), use_shm=use_shm
        )
        # On a CPU `.to(device)` does not copy, so without a clone the next bucket would overwrite these tensors.
        receiver.receive_weights(lambda bucket, is_last: weights.extend((name, t.clone()) for name, t in bucket))
        self.model_runner.reload_weights(weights_iterator=iter(weights))
