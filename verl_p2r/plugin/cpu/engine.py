# SPDX-License-Identifier: Apache-2.0
"""verl's FSDP engine, registered for a CPU. Remove it when verl registers it and offloads without pinning."""

from typing import Any

from verl.workers.engine import EngineRegistry

from verl_p2r.plugin import shm_tracker
from verl_p2r.plugin.fsdp.engine import FreezableFSDPEngine


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
class CPUFSDPEngine(FreezableFSDPEngine):
    """verl's engine without the offloading of a reference model, which is in host memory already.

    verl gives a forward-only FSDP2 model an offload policy that pins host memory, which torch refuses without an
    accelerator. On a CPU verl sends weights to vLLM through shared memory.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        shm_tracker.start()
        super().__init__(*args, **kwargs)

    def _build_fsdp_module(self, module):
        config = self.engine_config
        forward_only, config.forward_only = config.forward_only, False
        try:
            return super()._build_fsdp_module(module)
        finally:
            config.forward_only = forward_only
