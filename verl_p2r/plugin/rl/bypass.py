# SPDX-License-Identifier: Apache-2.0
"""verl's bypass mode of rollout correction: the rollout's log-probabilities serve as the old ones.

    algorithm.rollout_correction.bypass_mode=True

It leaves out one of a step's three passes. verl 0.9.1's v1 trainers then keep the PPO loss of the actor's config and
read none of the mode's other settings, so those are refused here.
"""

from typing import Any


def check_bypass(config: Any) -> None:
    """Refuse settings that bypass mode needs otherwise, or would silently ignore.

    Args:
        config: the whole config of verl's PPO trainer.

    Raises:
        ValueError: with the reason and the remedy.
    """
    correction = config.algorithm.get("rollout_correction") or {}
    if not correction.get("bypass_mode", False):
        return
    mode = "algorithm.rollout_correction.bypass_mode=True"
    if not config.actor_rollout_ref.rollout.calculate_log_probs:
        raise ValueError(
            f"{mode} takes the old log-probabilities from the rollout, which returns none: set "
            "actor_rollout_ref.rollout.calculate_log_probs=True"
        )
    for name, default in (("rollout_is", None), ("rollout_rs", None), ("loss_type", "ppo_clip")):
        if correction.get(name, default) != default:
            raise ValueError(
                f"algorithm.rollout_correction.{name}={correction[name]} with {mode}: verl 0.9.1's v1 trainers would "
                f"ignore it: set {name} to {'null' if default is None else default}, or bypass_mode=False"
            )
