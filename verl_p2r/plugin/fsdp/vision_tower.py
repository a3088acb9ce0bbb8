# SPDX-License-Identifier: Apache-2.0
"""Freezes the vision tower under FSDP; verl 0.9.1 accepts the flag but ignores it.

    actor_rollout_ref.actor.freeze_vision_tower=True      # RL: verl's own key
    engine.freeze_vision_tower=True                       # SFT: ours, in the config `p2r_sft`

All of `model.visual` is frozen, with its mergers (in Qwen3-VL also those of deepstack) and its LoRA adapters, as in
versions of verl that read the flag. The flag reaches the engine through its config's `_target_` (this module) and
verl's engine registry (`engine.py`). It does not affect the reference policy and the rollout. Remove this module when
verl's FSDP engine reads the flag.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, open_dict
from torch import nn
from verl.workers.config import FSDPEngineConfig

from verl_p2r.media.families import FAMILIES

TOWERS = {family.tower.name for family in FAMILIES}
STRATEGIES = ("fsdp", "fsdp2")
FEATURES_GIB = 2.0  # host memory for a step's features on each rank, if the config does not say


@dataclass
class FreezableFSDPEngineConfig(FSDPEngineConfig):
    """verl's FSDP engine config with our three fields.

    Args:
        freeze_vision_tower: the vision tower is not trained.
        shared_prefix: rollouts share their prompt; see `switch.py`.
        vision_features_gib: host memory for features that a frozen tower makes once a step; 0 keeps none. See
            `step_features.py`.
    """

    freeze_vision_tower: bool = False
    shared_prefix: bool = False
    vision_features_gib: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze_vision_tower and self.strategy == "fsdp_turbo":  # another engine, which ignores the flag
            check_strategy(self)


ENGINE_CONFIG = f"{__name__}.{FreezableFSDPEngineConfig.__name__}"


def towers_of(module: nn.Module) -> list[nn.Module]:
    """Find the vision tower of a model, plain or inside PEFT's or FSDP's wrapper; empty for a model without one."""
    return [part for name, part in module.named_modules() if name.rpartition(".")[2] in TOWERS]


def freeze(module: nn.Module) -> int:
    """Exclude a model's vision tower from training.

    Args:
        module: a Hugging Face model, plain or inside PEFT's wrapper; not yet sharded.

    Returns:
        The number of frozen parameters.

    Raises:
        ValueError: the model has no vision tower.
    """
    towers = towers_of(module)
    if not towers:
        names = " or ".join(map(repr, sorted(TOWERS)))
        raise ValueError(
            f"freeze_vision_tower=True, but {type(module).__name__} has no module named {names}: set it to False, or "
            "train a model of a known family"
        )
    for tower in towers:
        tower.requires_grad_(False)
    return sum(p.numel() for tower in towers for p in tower.parameters())


def check_strategy(config: Any) -> None:
    """Refuse an engine that cannot freeze, or would ignore the flag.

    Args:
        config: with `strategy` and, for FSDP1, `use_orig_params`.

    Raises:
        ValueError: with the remedy.
    """
    if config.strategy not in STRATEGIES:
        raise ValueError(
            f"freeze_vision_tower=True works with the strategies fsdp and fsdp2; strategy={config.strategy} would "
            "ignore it: change one of them"
        )
    if config.strategy == "fsdp" and not config.use_orig_params:
        raise ValueError(
            "freeze_vision_tower=True with FSDP1: it flattens frozen and trained parameters into one, which only "
            "works if it keeps the original ones: set strategy=fsdp2 (of actor and ref), or use_orig_params=True (in "
            "actor.fsdp_config; in engine for SFT)"
        )


def freeze_actor(config: DictConfig) -> None:
    """Pass `actor.freeze_vision_tower`, which verl's worker drops, to the actor's engine. Changes `config`.

    The engines of actor and reference also learn how much memory the frozen tower's features may take.

    Args:
        config: the whole config of verl's PPO trainer.

    Raises:
        ValueError: the actor's strategy cannot freeze.
    """
    roles = config.actor_rollout_ref
    actor = roles.actor
    if not actor.get("freeze_vision_tower", False):
        return
    check_strategy(
        DictConfig({"strategy": actor.strategy, "use_orig_params": actor.get("fsdp_config", {}).get("use_orig_params")})
    )
    gib = (config.trainer.get("p2r") or {}).get("vision_features_gib", FEATURES_GIB)
    with open_dict(roles):
        actor.fsdp_config._target_ = ENGINE_CONFIG
        actor.fsdp_config.freeze_vision_tower = True
        actor.fsdp_config.vision_features_gib = gib
        if roles.ref.strategy in STRATEGIES:
            roles.ref.fsdp_config._target_ = ENGINE_CONFIG
            roles.ref.fsdp_config.vision_features_gib = gib
