# SPDX-License-Identifier: Apache-2.0
"""Old log-probabilities from the rollout: what the trainers do with it, and what is refused."""

import pytest
import torch
from cpu_config import make_config
from test_trainer import assert_equal, get, make_trainer, pad, put, rollouts, slow
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.config import omega_conf_to_dataclass

from verl_p2r.plugin.rl.trainer import check_config

BYPASS = "algorithm.rollout_correction.bypass_mode=True"
TRAINERS = ["p2r_sync", "p2r_colocate_async", "p2r_separate_async"]


class NoWorker:
    """A worker group that fails when it is asked for a pass."""

    def compute_log_prob(self, batch):
        pytest.fail("bypass mode asked for the pass that it leaves out")


@pytest.mark.slow
@pytest.mark.parametrize("mode", TRAINERS)
def test_bypass_uses_rollout_log_probs_and_keeps_advantages(queue, mode):
    rows = rollouts(4)
    batch = pad(put(rows), rows, 5)  # verl's padding rows, too
    trainer = make_trainer(BYPASS, cls=get_trainer_cls(mode))
    trainer.actor_rollout_wg = NoWorker()
    metrics: dict = {}
    assert isinstance(trainer._compute_old_log_prob(batch, metrics), KVBatchMeta)
    old, rollout = get(batch.keys, "old_log_probs", "rollout_log_probs")
    assert old == rollout
    trainer._compute_advantage(batch, metrics)
    keys = [row.key for row in rows]
    assert_equal(get(keys, "advantages")[0], slow(rows))
    assert not [name for name in metrics if name.startswith("rollout_corr")]  # nothing is corrected


def test_bypass_loss_clips_policy_to_rollout_ratio():
    """The actor's config does not change; by hand: ratio e^0.5 is clipped at 1.2, ratio e^0.1 is not."""
    micro = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"
    config = omega_conf_to_dataclass(make_config(BYPASS, micro).actor_rollout_ref.actor)
    assert config.policy_loss.loss_mode == "vanilla"
    of_rollout = torch.tensor([[-1.0, -2.0]])
    policy = of_rollout + torch.tensor([[0.5, 0.1]])
    loss, _ = compute_policy_loss_vanilla(
        old_log_prob=of_rollout,
        log_prob=policy,
        advantages=torch.tensor([[1.0, 3.0]]),
        response_mask=torch.ones(1, 2),
        loss_agg_mode="token-mean",
        config=config,
    )
    assert loss.item() == pytest.approx(-(1.2 * 1.0 + torch.tensor(0.1).exp().item() * 3.0) / 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("actor_rollout_ref.rollout.calculate_log_probs=False", "rollout.calculate_log_probs=True"),
        ("algorithm.rollout_correction.rollout_is=token", "rollout_is=token.*would ignore it: set rollout_is to null"),
        ("algorithm.rollout_correction.rollout_rs=token_k1", "rollout_rs=token_k1.*would ignore it"),
        ("algorithm.rollout_correction.loss_type=reinforce", "set loss_type to ppo_clip, or bypass_mode=False"),
    ],
)
def test_settings_ignored_by_bypass_mode_are_refused(override, message):
    check_config(make_config(BYPASS))
    check_config(make_config(override))  # without bypass mode each has its use
    with pytest.raises(ValueError, match=message):
        check_config(make_config(BYPASS, override))
