# SPDX-License-Identifier: Apache-2.0
"""Freezing the vision tower, for FSDP: verl 0.9.1 has the flag, and nothing reads it.

    actor_rollout_ref.actor.freeze_vision_tower=True      # RL: verl's own key
    engine.freeze_vision_tower=True                       # SFT: ours, in the config `p2r_sft`

The whole of `model.visual` is frozen, its mergers (Qwen3-VL: also those of deepstack) and any LoRA adapters in it: what
the flag meant in verl while verl read it. Two doors of verl carry it: the engine config's `_target_` (here), and the
engine registry (`fsdp_engine.py`). The reference policy and the rollout know nothing of it.
Can go when verl's FSDP engine reads the flag.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, open_dict
from torch import nn
from verl.workers.config import FSDPEngineConfig

from verl_p2r.media.families import FAMILIES

TOWERS = {family.tower.name for family in FAMILIES}


@dataclass
class FreezableFSDPEngineConfig(FSDPEngineConfig):
    """verl's, and whether the vision tower stays as it is and whether rollouts share their prompt."""

    freeze_vision_tower: bool = False
    shared_prefix: bool = False  # see `fsdp/switch.py`

    def __post_init__(self):
        super().__post_init__()
        if self.freeze_vision_tower and self.strategy == "fsdp_turbo":  # an engine of its own, which knows no flag
            check_strategy(self)


ENGINE_CONFIG = f"{__name__}.{FreezableFSDPEngineConfig.__name__}"


def freeze(module: nn.Module) -> int:
    """Take the gradients of a model's vision tower away.

    Args:
        module: a Hugging Face model, as it is or inside PEFT's wrapper; not yet sharded.

    Returns:
        The number of frozen parameters, as elements.

    Raises:
        ValueError: for a model without a tower.
    """
    towers = [part for name, part in module.named_modules() if name.rpartition(".")[2] in TOWERS]
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
    """Refuse what could not freeze, or would leave the flag unread.

    Args:
        config: with `strategy` and, for FSDP1, `use_orig_params`.

    Raises:
        ValueError: with the remedy.
    """
    if config.strategy not in ("fsdp", "fsdp2"):
        raise ValueError(
            f"freeze_vision_tower=True works with the strategies fsdp and fsdp2; strategy={config.strategy} would "
            "ignore it: change one of them"
        )
    if config.strategy == "fsdp" and not config.use_orig_params:
        raise ValueError(
            "freeze_vision_tower=True with FSDP1: it flattens frozen and trained parameters into one, which it refuses "
            "unless it keeps the original ones: set strategy=fsdp2 (of actor and ref), or use_orig_params=True (in "
            "actor.fsdp_config; in engine for SFT)"
        )


def freeze_actor(config: DictConfig) -> None:
    """Hand `actor.freeze_vision_tower`, which verl's worker drops, to the actor's engine. Changes `config`.

    Args:
        config: of verl's PPO trainer, whole.

    Raises:
        ValueError: when the actor's strategy cannot freeze.
    """
    actor = config.actor_rollout_ref.actor
    if not actor.get("freeze_vision_tower", False):
        return
    check_strategy(
        DictConfig({"strategy": actor.strategy, "use_orig_params": actor.get("fsdp_config", {}).get("use_orig_params")})
    )
    with open_dict(actor):
        actor.fsdp_config._target_ = ENGINE_CONFIG
        actor.fsdp_config.freeze_vision_tower = True
