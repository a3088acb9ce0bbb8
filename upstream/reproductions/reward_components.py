# SPDX-License-Identifier: Apache-2.0
"""A registered estimator gets one reward for each response, although the reward manager returned its components."""

from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf

THEN = (
    "verl_p2r/plugin/rl/advantage.py can read the components from its arguments: remove process_rewards there, and "
    "ProcessAware._compute_advantage in rl/trainer.py keeps only its metrics and checks"
)
COMPONENTS = {"perception_reward": 1.0, "reasoning_reward": 0.5}


def fault() -> str | None:
    """Let verl's trainer call an estimator for two responses whose rewards have components."""
    from verl.trainer.ppo.core_algos import register_adv_est

    received: dict[str, Any] = {}

    @register_adv_est("looks_for_components")
    def estimator(token_level_rewards, response_mask, non_tensor_batch=None, batch=None, **more):
        given = {"non_tensor_batch": non_tensor_batch, "batch": batch, **more}
        received.update({name: value for name, value in given.items() if value is not None})
        advantages = token_level_rewards * response_mask
        return advantages, advantages

    _advantages("looks_for_components")
    # By text, because a fix may pass the components in any argument and container.
    if any(name in repr(received) for name in COMPONENTS):
        return None
    return (
        f"the reward manager returned {', '.join(COMPONENTS)}, and the estimator was called with "
        f"{', '.join(sorted(received))} only; verl's own gdpo {_gdpo()}"
    )


def _gdpo() -> str:
    try:
        _advantages("gdpo", gdpo_reward_keys=list(COMPONENTS))
    except (AssertionError, KeyError) as error:
        return f"fails with {type(error).__name__}: {str(error).splitlines()[0]}"
    return "works"


def _advantages(estimator: str, **algorithm: Any) -> None:
    """Compute advantages as the v1 trainer does, with a list of rows in the place of TransferQueue."""
    from verl.trainer.ppo.v1 import PPOTrainer, trainer_base
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    def get(keys, partition_id, select_fields):
        rows = [_row(length) for length in (4, 3)]
        return list_of_dict_to_tensordict([{name: row[name] for name in select_fields if name in row} for row in rows])

    algorithm = {"adv_estimator": estimator, "use_kl_in_reward": False, "gamma": 1.0, "lam": 1.0, **algorithm}
    config = OmegaConf.create({"algorithm": algorithm, "actor_rollout_ref": {"rollout": {"n": 2}}})
    queue, trainer_base.tq = trainer_base.tq, SimpleNamespace(kv_batch_get=get, kv_batch_put=lambda **put: put)
    try:
        PPOTrainer._compute_advantage(SimpleNamespace(config=config), _Batch(), {})
    finally:
        trainer_base.tq = queue


def _row(length: int) -> dict[str, Any]:
    """What the agent loop leaves in TransferQueue for a response."""
    return {
        "uid": "prompt",
        "prompts": torch.zeros(2, dtype=torch.int64),
        "responses": torch.zeros(length, dtype=torch.int64),
        "response_mask": torch.ones(length, dtype=torch.int64),
        "rm_scores": torch.nn.functional.pad(torch.tensor([sum(COMPONENTS.values())]), (length - 1, 0)),
        "old_log_probs": torch.zeros(length),
        "extra_fields": {"reward_extra_info": COMPONENTS},
    }


class _Batch:
    """The keys of two responses to one prompt."""

    keys, partition_id = ("prompt_0_0", "prompt_1_0"), "train"

    def __len__(self) -> int:
        return len(self.keys)
