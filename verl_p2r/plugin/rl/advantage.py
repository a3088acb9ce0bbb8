# SPDX-License-Identifier: Apache-2.0
"""The advantage estimator `pa_grpo`, as verl calls it.

verl only passes one reward per response and the group ids to a registered estimator. PA-GRPO also needs two rewards,
the boundary between the segments, and whether the judge gave a verdict; the trainer (`rl/trainer.py`) provides them
for the duration of the call. Remove `process_rewards` when verl passes `non_tensor_batch` to estimators (verl PR 7473).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from verl_p2r.advantages import pa_grpo_advantages
from verl_p2r.segments import segment_masks
from verl_p2r.settings import P2RSettings


@dataclass(frozen=True)
class ProcessRewards:
    """Inputs of the estimator in addition to verl's arguments, one value per row of the batch.

    Args:
        perception: R_P. Shape: (bs,), float32.
        reasoning: R_R. Shape: (bs,), float32.
        perception_length: response tokens that belong to P. Shape: (bs,), int64.
        perception_valid: the judge gave a verdict. Shape: (bs,), bool.
        token_level_scores: the rewards before a KL penalty. Shape: (bs, L), float32.
    """

    perception: Tensor
    reasoning: Tensor
    perception_length: Tensor
    perception_valid: Tensor
    token_level_scores: Tensor


_process_rewards: ContextVar[ProcessRewards | None] = ContextVar("process_rewards", default=None)


@contextmanager
def process_rewards(rewards: ProcessRewards) -> Iterator[None]:
    """Make rewards visible to the estimator inside the `with` block.

    Args:
        rewards: rewards of the batch for which the estimator is called.
    """
    token = _process_rewards.set(rewards)
    try:
        yield
    finally:
        _process_rewards.reset(token)


@register_adv_est("pa_grpo")
def compute_pa_grpo_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any = None, config: Any = None, **_kwargs: Any
) -> tuple[Tensor, Tensor]:
    """PA-GRPO (Eq. 6) behind verl's estimator interface.

    A KL penalty in the rewards (`algorithm.use_kl_in_reward`) is spread over the tokens: each segment's share is added
    to its own process's reward [ours].

    Args:
        token_level_rewards: rewards, with the KL penalty if any. Shape: (bs, L), float32.
        response_mask: True for generated tokens. Shape: (bs, L).
        index: the group (uid) of each row. Shape: (bs,).
        config: verl's `algorithm` node; `algorithm.p2r` holds our settings.

    Returns:
        Advantages and returns, the same tensor. Shape: (bs, L), float32.

    Raises:
        RuntimeError: the trainer did not provide the process rewards.
    """
    rewards = _process_rewards.get()
    if rewards is None or len(rewards.perception) != len(response_mask):
        raise RuntimeError(
            "pa_grpo found no process rewards for this batch: set trainer.v1.trainer_mode to p2r_sync, "
            "p2r_colocate_async or p2r_separate_async, and reward.reward_manager.name to p2r"
        )
    settings = P2RSettings.from_mapping((config.get("p2r") if config else None) or {})
    penalty = token_level_rewards.float() - rewards.token_level_scores
    # By position, not by mask, because a token that rejection sampling masked keeps its penalty, as in verl's GRPO.
    in_perception, in_reasoning = segment_masks(rewards.perception_length, torch.ones_like(response_mask))
    advantages = pa_grpo_advantages(
        rewards.perception + (penalty * in_perception).sum(-1),
        rewards.reasoning + (penalty * in_reasoning).sum(-1),
        rewards.perception_length,
        response_mask,
        index,
        norm_by_std=config.get("norm_adv_by_std_in_grpo", True) if config else True,
        separate=settings.separated,
        perception_valid=rewards.perception_valid,
        segment_weighting=settings.segment_weighting,
        cross_credit=settings.cross_credit,
    )
    return advantages, advantages
