# SPDX-License-Identifier: Apache-2.0
"""Group filtering through verl's replay buffer: a group is dropped when neither of its rewards can teach."""

import pytest
import transfer_queue as tq
from cpu_config import make_config
from rollout_rows import make_trainer, put, rollouts
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

pytestmark = pytest.mark.slow  # for the start of Ray


def put_group(uid: str, rewards: list[tuple[float, float]]) -> None:
    """One finished prompt with its responses."""
    rows = rollouts(12, groups=[(uid, len(rewards))])
    for row, (perception, reasoning) in zip(rows, rewards, strict=True):
        row.perception, row.reasoning = perception, reasoning
    put(rows)
    tq.kv_batch_put(
        keys=[uid], partition_id="train", tags=[{"is_prompt": True, "status": "finished", "global_steps": 2}]
    )


def replay_buffer(metric: str) -> ReplayBuffer:
    return ReplayBuffer(
        trainer_mode="sync",
        trainer_config=make_config().trainer.v1.sync,
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs={},
        poll_interval=0.01,
        refill_fn=lambda count: pytest.fail(f"{count} prompts asked for: a group was dropped that should be kept"),
        filter_groups_metric=metric,
        train_batch_size=3,
        gen_batch_size=1,
    )


def test_a_group_is_kept_unless_both_rewards_are_constant(queue):
    put_group("sum", [(1.0, 0.0), (0.0, 1.0)])
    put_group("perception", [(0.2, 1.0), (0.2, 1.2), (0.2, 1.0)])
    put_group("reasoning", [(1.0, 0.3), (1.2, 0.3), (1.0, 0.3)])
    put_group("neither", [(1.2, 0.1 + 0.2), (1.2, 0.3), (1.2, 0.3)])  # 0.1 + 0.2 and 0.3 are one reward
    batch, metrics = replay_buffer("both_rewards").sample(global_steps=3, partition_id="train", batch_size=3)
    assert {key.split("_")[0] for key in batch.keys} == {"sum", "perception", "reasoning"}
    assert metrics["training/filter_groups/evicted_samples"] == 1
    make_trainer()._compute_advantage(batch, {})


def test_filtering_by_summed_reward_would_drop_useful_group(queue):
    put_group("sum", [(1.0, 0.0), (0.0, 1.0)])
    buffer = replay_buffer("reward")
    buffer._sync_metadata_from_transfer_queue()
    assert buffer._dapo_filtered_keys("train")[0] == {"sum"}
