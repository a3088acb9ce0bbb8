# SPDX-License-Identifier: Apache-2.0
"""The estimator `pa_grpo` as verl calls it: its context, its settings, and the KL penalty each process pays itself."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_adv_estimator_fn

from verl_p2r.advantages import pa_grpo_advantages
from verl_p2r.plugin.rl.advantage import ProcessRewards, process_rewards

estimator = get_adv_estimator_fn("pa_grpo")


def config(norm: bool = True, **p2r):
    return OmegaConf.create({"norm_adv_by_std_in_grpo": norm, "p2r": p2r})


def scores_of(perception: torch.Tensor, reasoning: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The summed reward on each row's last generated token, as verl stores it."""
    scores = torch.zeros(mask.shape)
    last = (mask * torch.arange(mask.shape[1])).argmax(1)
    scores[torch.arange(len(mask)), last] = perception + reasoning
    return scores


def batch(rows: int = 12, width: int = 9, groups: int = 3):
    """Seeded rewards, boundaries, masks with padding and holes, group ids, and rows without a verdict."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(2, width + 1, (rows, 1), generator=generator)
    mask = (torch.arange(width) < lengths).long()
    mask[:, 1] = torch.randint(0, 2, (rows,), generator=generator)
    perception = torch.rand(rows, generator=generator)
    reasoning = torch.rand(rows, generator=generator)
    rewards = ProcessRewards(
        perception=perception,
        reasoning=reasoning,
        perception_length=torch.randint(0, width + 1, (rows,), generator=generator),
        perception_valid=torch.rand(rows, generator=generator) > 0.2,
        token_level_scores=scores_of(perception, reasoning, mask),
    )
    return rewards, mask, np.array([f"uid{i % groups}" for i in range(rows)], dtype=object)


def test_estimator_without_our_trainer_names_required_settings():
    with pytest.raises(RuntimeError, match=r"trainer\.v1\.trainer_mode to p2r_sync.*reward_manager\.name to p2r"):
        estimator(token_level_rewards=torch.zeros(2, 3), response_mask=torch.ones(2, 3), index=np.array(["a", "a"]))


def test_estimator_refuses_rewards_of_another_batch():
    rewards, mask, _ = batch()
    with process_rewards(rewards), pytest.raises(RuntimeError, match="no process rewards for this batch"):
        estimator(token_level_rewards=torch.zeros(2, 9), response_mask=mask[:2], index=np.array(["a", "a"]))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("weighting", ["token", "segment"])
@pytest.mark.parametrize("cross", [0.0, 0.5])
def test_estimator_passes_settings_to_pa_grpo_advantages(norm, separate, weighting, cross):
    rewards, mask, uid = batch()
    cross = cross if separate else 0.0
    settings = config(norm, separate=separate, segment_weighting=weighting, cross_credit=cross)
    with process_rewards(rewards):
        advantages, returns = estimator(
            token_level_rewards=rewards.token_level_scores, response_mask=mask, index=uid, config=settings
        )
    expected = pa_grpo_advantages(
        rewards.perception,
        rewards.reasoning,
        rewards.perception_length,
        mask,
        uid,
        norm_by_std=norm,
        separate=separate,
        segment_weighting=weighting,
        cross_credit=cross,
        perception_valid=rewards.perception_valid,
    )
    torch.testing.assert_close(advantages, expected, rtol=0, atol=0)
    torch.testing.assert_close(returns, expected, rtol=0, atol=0)
    assert advantages.abs().sum() > 0


def test_advantages_with_one_process_disabled_are_not_separated():
    rewards, mask, uid = batch()
    everyone = torch.ones(len(mask), dtype=torch.bool)
    off = ProcessRewards(
        torch.zeros(len(mask)), rewards.reasoning, rewards.perception_length, everyone, rewards.token_level_scores
    )
    with process_rewards(off):
        advantages, _ = estimator(
            token_level_rewards=off.token_level_scores,
            response_mask=mask,
            index=uid,
            config=config(perception={"enabled": False}),
        )
    verl, _ = compute_grpo_outcome_advantage(scores_of(off.perception, off.reasoning, mask), mask, uid)
    torch.testing.assert_close(advantages, verl)


def kl_example():
    """Two responses of one question: R_P = (1, 0), R_R = (0, 1), and a penalty on every generated token."""
    perception, reasoning = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    penalty = torch.tensor([[-0.1, -0.3, -0.2, 0.0], [-0.5, -0.1, -0.1, -0.2]])
    scores = scores_of(perception, reasoning, mask)
    rewards = ProcessRewards(perception, reasoning, torch.tensor([2, 1]), torch.tensor([True, True]), scores)
    return rewards, scores + penalty, mask, np.array(["a", "a"], dtype=object)


def test_each_process_gets_kl_penalty_of_its_tokens():
    rewards, with_penalty, mask, uid = kl_example()
    with process_rewards(rewards):
        advantages, _ = estimator(
            token_level_rewards=with_penalty, response_mask=mask, index=uid, config=config(norm=False)
        )
    # R_P: 1 - 0.1 - 0.3 = 0.6 and 0 - 0.5 = -0.5, mean 0.05.  R_R: 0 - 0.2 = -0.2 and 1 - 0.4 = 0.6, mean 0.2.
    expected = torch.tensor([[0.55, 0.55, -0.4, 0.0], [-0.55, 0.4, 0.4, 0.4]])
    torch.testing.assert_close(advantages, expected)


def test_cross_credit_also_carries_the_answers_kl_penalty():
    rewards, with_penalty, mask, uid = kl_example()
    with process_rewards(rewards):
        advantages, _ = estimator(
            token_level_rewards=with_penalty,
            response_mask=mask,
            index=uid,
            config=config(norm=False, cross_credit=0.5),
        )
    # A_P = ±0.55 and A_R = ∓0.4 as above; tokens of P get 0.55 − 0.2 and −0.55 + 0.2.
    expected = torch.tensor([[0.35, 0.35, -0.4, 0.0], [-0.35, 0.4, 0.4, 0.4]])
    torch.testing.assert_close(advantages, expected)


def test_norm_adv_by_std_in_grpo_is_honoured():
    rewards, with_penalty, mask, uid = kl_example()
    with process_rewards(rewards):
        advantages, _ = estimator(token_level_rewards=with_penalty, response_mask=mask, index=uid, config=config())
    # For any two values, the distance from the mean over the unbiased deviation is 1/√2.
    half = 0.5**0.5
    expected = torch.tensor([[half, half, -half, 0.0], [-half, half, half, half]])
    torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-5)


def test_rejected_token_still_contributes_its_kl_penalty():
    """Rejection sampling masks tokens after the penalty is known; verl's GRPO still sums the whole penalty."""
    rewards, with_penalty, mask, uid = kl_example()
    rejected = mask.clone()
    rejected[0, 1] = rejected[1, 3] = 0
    with process_rewards(rewards):
        together, _ = estimator(
            token_level_rewards=with_penalty, response_mask=rejected, index=uid, config=config(separate=False)
        )
        apart, _ = estimator(
            token_level_rewards=with_penalty, response_mask=rejected, index=uid, config=config(norm=False)
        )
    verl, _ = compute_grpo_outcome_advantage(with_penalty, rejected, uid)
    torch.testing.assert_close(together, verl)
    torch.testing.assert_close(apart, torch.tensor([[0.55, 0.0, -0.4, 0.0], [-0.55, 0.4, 0.4, 0.0]]))


def test_process_rewards_context_ends_on_error_and_nests():
    rewards, mask, uid = batch()
    arguments = {"token_level_rewards": rewards.token_level_scores, "response_mask": mask, "index": uid}
    with pytest.raises(ZeroDivisionError), process_rewards(rewards):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="no process rewards"):
        estimator(**arguments)
    other = ProcessRewards(**{**vars(rewards), "perception": rewards.perception.flip(0)})
    with process_rewards(rewards):
        before, _ = estimator(**arguments)
        with process_rewards(other):
            inside, _ = estimator(**arguments)
        after, _ = estimator(**arguments)
    assert torch.equal(before, after)
    assert not torch.equal(before, inside)


def test_a_cross_credit_that_means_nothing_is_named():
    rewards, mask, uid = batch()
    with process_rewards(rewards), pytest.raises(ValueError, match=r"algorithm\.p2r\.cross_credit is -1.0: give"):
        estimator(
            token_level_rewards=rewards.token_level_scores,
            response_mask=mask,
            index=uid,
            config=config(cross_credit=-1),
        )


def test_misspelled_p2r_setting_is_named():
    rewards, mask, uid = batch()
    with process_rewards(rewards), pytest.raises(ValueError, match=r"algorithm\.p2r\.seperate does not exist"):
        estimator(
            token_level_rewards=rewards.token_level_scores, response_mask=mask, index=uid, config=config(seperate=True)
        )
