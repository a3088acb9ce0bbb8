# SPDX-License-Identifier: Apache-2.0
"""The switch of shared-prefix training, and the settings that it refuses at start.

    trainer.p2r.shared_prefix=True

The trainer passes it to the engines of the actor and the reference, as
`actor_rollout_ref.{actor,ref}.fsdp_config.shared_prefix`.
"""

from typing import Any

from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch import nn
from verl.utils import tensordict_utils as tu

from verl_p2r.media.families import FAMILIES, family_of_model
from verl_p2r.plugin.fsdp.vision_tower import ENGINE_CONFIG

OFF = "or set trainer.p2r.shared_prefix=False"


def share_prefix(config: DictConfig) -> None:
    """Pass `trainer.p2r.shared_prefix` to the engines of actor and reference. Changes `config`.

    Args:
        config: the whole config of verl's PPO trainer.

    Raises:
        ValueError: the run cannot share prefixes; the message names the remedy.
    """
    if not (config.trainer.get("p2r") or {}).get("shared_prefix", False):
        return
    roles = config.actor_rollout_ref
    if roles.actor.get("shuffle", False):
        raise ValueError(
            "shared_prefix with actor.shuffle=True: verl would spread the rollouts of a prompt over mini-batches, and "
            f"nothing would be shared: set actor_rollout_ref.actor.shuffle=False, {OFF}"
        )
    if roles.model.get("enable_activation_offload", False):
        raise ValueError(
            "shared_prefix with enable_activation_offload=True: this has never run, because it needs an accelerator: "
            f"set actor_rollout_ref.model.enable_activation_offload=False, {OFF}"
        )
    for name in ("actor", "ref"):
        role = roles[name]
        if role.strategy not in ("fsdp", "fsdp2"):
            raise ValueError(
                f"shared_prefix works with the strategies fsdp and fsdp2, and {name}.strategy is {role.strategy}: "
                f"change it, {OFF}"
            )
        engine = {**role.fsdp_config, "strategy": role.strategy}
        for key in ("ulysses_sequence_parallel_size", "pad_to_length"):
            engine[key] = max(role.get(key) or 0, engine.get(key) or 0)
        check_engine(engine)
        with open_dict(role):
            role.fsdp_config._target_ = ENGINE_CONFIG
            role.fsdp_config.shared_prefix = True


def check_engine(config: Any) -> None:
    """Refuse an engine config that does not support shared prefixes.

    Args:
        config: with `strategy`, `ulysses_sequence_parallel_size` and `pad_to_length`.

    Raises:
        ValueError: with the remedy.
    """
    if config.get("strategy") not in ("fsdp", "fsdp2"):
        raise ValueError(
            f"shared_prefix works with the strategies fsdp and fsdp2; strategy={config.get('strategy')} would ignore "
            f"it: change it, {OFF}"
        )
    if (config.get("ulysses_sequence_parallel_size") or 1) > 1:
        raise ValueError(
            "shared_prefix does not support ulysses_sequence_parallel_size > 1: a packed prefix would have to be split "
            f"over ranks inside a segment: set ulysses_sequence_parallel_size=1, {OFF}"
        )
    if config.get("pad_to_length"):
        raise ValueError(f"shared_prefix does not pack rows to a fixed length: set pad_to_length=False, {OFF}")


def check_model(config: Any, module: nn.Module | None = None) -> None:
    """Refuse a model whose rows would give different numbers behind a shared prefix.

    Args:
        config: the Hugging Face config of the model.
        module: the model with its adapters; None before they are added.

    Raises:
        ValueError: with the remedy.
    """
    family = family_of_model(config.model_type)
    if family is not None and family.hybrid:
        raise ValueError(
            f"shared_prefix with {config.model_type}: its linear-attention layers carry a state from token to token, "
            "and every response would need a copy of the state at the end of the prompt, which is not built: train "
            f"another family, {OFF}"
        )
    if family is None or not family.one_tower_call:
        served = [family.model_type for family in FAMILIES if family.one_tower_call and not family.hybrid]
        raise ValueError(
            f"shared_prefix supports the models {', '.join(served)}, and this is {config.model_type}: train one of "
            f"them, {OFF}"
        )
    text = config.get_text_config()
    if getattr(text, "attention_dropout", 0.0):
        raise ValueError(
            f"shared_prefix with attention_dropout={text.attention_dropout}: the rows of a prompt would share one "
            f"dropout mask: set it to 0 in actor_rollout_ref.model.override_config, {OFF}"
        )
    if "sliding_attention" in (getattr(text, "layer_types", None) or []):
        raise ValueError(
            "shared_prefix with sliding-window layers: a response would have to attend to a part of its prefix: set "
            f"use_sliding_window=False in actor_rollout_ref.model.override_config, {OFF}"
        )
    for name, part in module.named_modules() if module is not None else ():
        if isinstance(part, nn.Dropout) and part.p > 0:
            raise ValueError(
                f"shared_prefix with dropout {part.p} in {name}: the rows of a prompt would share one dropout mask: "
                f"set it to 0 (lora_dropout of the adapter), {OFF}"
            )


def check_batch(data: TensorDict) -> None:
    """Refuse a batch that needs outputs over whole rows.

    Args:
        data: verl's batch, with its settings.

    Raises:
        ValueError: with the remedy.
    """
    if tu.get_non_tensor_data(data=data, key="distillation_use_topk", default=False):
        raise ValueError(
            "shared_prefix with top-k distillation: the teacher's tensors cover whole rows: set "
            f"distillation.distillation_loss.use_topk=False, {OFF}"
        )
