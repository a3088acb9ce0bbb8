# SPDX-License-Identifier: Apache-2.0
"""verl's FSDP engine with what this project adds: see the three mixins.

In verl's registry an engine for a vendor takes precedence over one for a device, which is verl's own. The hook on
verl's engine module imports this one; importing it earlier causes a circular import. Remove it when verl's engine reads
`freeze_vision_tower` and calls the vision tower once.
"""

from verl.workers.config.optimizer import build_optimizer
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_p2r.plugin.fsdp import log_probs  # noqa: F401  replaces a function of verl
from verl_p2r.plugin.fsdp.shared_prefix import SharedPrefix
from verl_p2r.plugin.fsdp.step_features import StepFeatures
from verl_p2r.plugin.fsdp.tower import OneTowerCall
from verl_p2r.plugin.fsdp.vision_tower import check_strategy, freeze


class FreezableFSDPEngine(SharedPrefix, StepFeatures, OneTowerCall, FSDPEngineWithLMHead):
    """verl's FSDP engine; with `freeze_vision_tower` in its config it trains everything except the vision tower."""

    def __init__(self, model_config, engine_config, *args, **kwargs):
        self._freezes = bool(engine_config.get("freeze_vision_tower", False)) and not engine_config.forward_only
        if self._freezes:
            check_strategy(engine_config)
        super().__init__(model_config, engine_config, *args, **kwargs)

    def _build_fsdp_module(self, module):
        if self._freezes:  # after LoRA adds its adapters, before FSDP shards
            frozen = freeze(module)
            if self.rank == 0:
                print(f"the vision tower is frozen: {frozen / 1e6:.1f} M parameters are not trained")
        return super()._build_fsdp_module(module)

    def _build_optimizer(self, module):
        if not self._freezes:
            return super()._build_optimizer(module)
        return build_optimizer([p for p in module.parameters() if p.requires_grad], self.optimizer_config)


for _device, _vendors in {"cuda": ["nvidia", "amd"], "npu": ["huawei"]}.items():  # `cpu/engine.py` adds the CPU
    EngineRegistry.register("language_model", ["fsdp", "fsdp2"], _device, _vendors)(FreezableFSDPEngine)
