# SPDX-License-Identifier: Apache-2.0
"""PA-GRPO's advantages: worked by hand, against a slow loop, against verl's GRPO, and by invariants."""

import math
import os
import random
import statistics

import numpy as np
import pytest
import torch

from verl_p2r.advantages import pa_grpo_advantages

LENGTH = torch.tensor([1, 2, 0, 3])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
GOLDEN = {
    "perception_rewards": torch.tensor([1.0, 0.0, 1.0, 0.0]),
    "reasoning_rewards": torch.tensor([0.0, 2.0, 1.0, 1.0]),
    "perception_length": LENGTH,
    "response_mask": MASK,
    "group_ids": ["question"] * 4,
}


def golden(**changes):
    return pa_grpo_advantages(**{**GOLDEN, **changes})


def test_group_of_four_matches_hand_computed_advantages():
    # R_P = 1 0 1 0: mean 1/2, squares 4 × 1/4 = 1, unbiased std √(1/3): A_P = ±(1/2)/√(1/3) = ±0.8660254.
    # R_R = 0 2 1 1: mean 1, squares 1 + 1 = 2, unbiased std √(2/3): A_R = −1.2247449, 1.2247449, 0, 0.
    p, r = math.sqrt(3) / 2, math.sqrt(1.5)
    expected = torch.tensor([[p, -r, -r, 0], [-p, -p, r, r], [0, 0, 0, 0], [-p, -p, -p, 0]])
    torch.testing.assert_close(golden(epsilon=0.0), expected)
    # Row 2 has no perception tokens and the mean reasoning reward, row 3 no reasoning tokens.


def test_group_of_four_without_std_matches_hand_computed_advantages():
    expected = torch.tensor([[0.5, -1, -1, 0], [-0.5, -0.5, 1, 1], [0, 0, 0, 0], [-0.5, -0.5, -0.5, 0]])
    assert torch.equal(golden(norm_by_std=False), expected)


def test_advantages_without_separation_match_hand_computed_values():
    # R_P + R_R = 1 2 2 1: mean 1.5, on every token.
    expected = torch.tensor([[-0.5, -0.5, -0.5, 0], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0, 0], [-0.5, -0.5, -0.5, 0]])
    assert torch.equal(golden(separate=False, norm_by_std=False), expected)


def test_segment_weighting_matches_hand_computed_advantages():
    # Row 0: T = 3, T_P = 1, T_R = 2: 0.5 × 3/2 = 0.75 and −1 × 3/4 = −0.75, so that the segments' sums, 0.75 and −1.5,
    # are T/2 × A. Row 1: T = 4, both segments 2: weights 1. Rows 2 and 3 have one segment: weight 1.
    expected = torch.tensor([[0.75, -0.75, -0.75, 0], [-0.5, -0.5, 1, 1], [0, 0, 0, 0], [-0.5, -0.5, -0.5, 0]])
    assert torch.equal(golden(norm_by_std=False, segment_weighting="segment"), expected)


def test_rows_without_verdict_match_hand_computed_advantages():
    # Row 1 is excluded: the others have R_P 1 1 0, mean 2/3. Its perception tokens get 0; its reasoning is unchanged.
    third = 1 / 3
    expected = torch.tensor([[third, -1, -1, 0], [0, 0, 1, 1], [0, 0, 0, 0], [-2 * third, -2 * third, -2 * third, 0]])
    valid = torch.tensor([True, False, True, True])
    torch.testing.assert_close(golden(norm_by_std=False, perception_valid=valid), expected)
    # No separation: R_P + R_R of the others is 1 2 1, mean 4/3; a row without a verdict has no sum to compare.
    expected = torch.tensor([[-third] * 3 + [0], [0] * 4, [2 * third] * 2 + [0, 0], [-third] * 3 + [0]])
    torch.testing.assert_close(golden(norm_by_std=False, perception_valid=valid, separate=False), expected)


def test_cross_credit_by_hand():
    # λ = 1/4 adds A_R / 4 to tokens of P. Row 0: 1/2 − 1/4. Row 1: −1/2 + 1/4. Row 3: −1/2 + 0. R is unchanged.
    expected = torch.tensor([[0.25, -1, -1, 0], [-0.25, -0.25, 1, 1], [0, 0, 0, 0], [-0.5, -0.5, -0.5, 0]])
    assert torch.equal(golden(norm_by_std=False, cross_credit=0.25), expected)
    # Row 1 without a verdict: the others have R_P 1 1 0, mean 2/3, and row 1 keeps A_R / 4 on its tokens of P.
    third = 1 / 3
    expected = torch.tensor(
        [[third - 0.25, -1, -1, 0], [0.25, 0.25, 1, 1], [0, 0, 0, 0], [-2 * third, -2 * third, -2 * third, 0]]
    )
    valid = torch.tensor([True, False, True, True])
    torch.testing.assert_close(golden(norm_by_std=False, perception_valid=valid, cross_credit=0.25), expected)
    # Weights of equal segments come after it: row 0 has T_P = 1 of T = 3, so 1/4 × 3/2.
    weighted = golden(norm_by_std=False, cross_credit=0.25, segment_weighting="segment")
    assert weighted[0].tolist() == [0.375, -0.75, -0.75, 0]


def test_only_row_with_verdict_in_group_has_zero_perception_advantage():
    advantages = golden(perception_valid=torch.tensor([True, False, False, False]))
    assert not advantages[torch.arange(4) < LENGTH[:, None]].any()


def test_group_of_one_uses_mean_0_and_std_1():
    arguments = (torch.tensor([3.0]), torch.tensor([2.0]), torch.tensor([1]), torch.ones(1, 2), ["alone"])
    assert pa_grpo_advantages(*arguments, epsilon=0.0).tolist() == [[3.0, 2.0]]
    assert pa_grpo_advantages(*arguments, norm_by_std=False).tolist() == [[3.0, 2.0]]
    assert pa_grpo_advantages(*arguments, epsilon=0.0, perception_valid=torch.tensor([False])).tolist() == [[0.0, 2.0]]


def slow(rewards_p, rewards_r, length, mask, ids, *, valid, norm_by_std, epsilon, separate, segment_weighting, cross):
    """Compute the definition row by row and token by token, in float64."""

    def relative(rewards, row, counted):
        if not counted[row]:
            return 0.0
        group = [other for other in range(len(ids)) if ids[other] == ids[row]]
        if len(group) == 1:
            mean, deviation = 0.0, 1.0
        else:
            values = [rewards[other] for other in group if counted[other]]
            if len(values) < 2:
                return 0.0
            mean, deviation = statistics.mean(values), statistics.stdev(values)
        return (rewards[row] - mean) / (deviation + epsilon if norm_by_std else 1.0)

    everyone = [True] * len(ids)
    total = [p + r for p, r in zip(rewards_p, rewards_r, strict=True)]
    result = [[0.0] * len(mask[0]) for _ in ids]
    for row in range(len(ids)):
        a_p = relative(rewards_p, row, valid) if separate else relative(total, row, valid)
        a_r = relative(rewards_r, row, everyone) if separate else relative(total, row, valid)
        a_p += cross * a_r
        generated = [place for place, one in enumerate(mask[row]) if one]
        of_p = [place for place in generated if place < length[row]]
        of_r = [place for place in generated if place >= length[row]]
        for places, advantage in ((of_p, a_p), (of_r, a_r)):
            weighted = segment_weighting == "segment" and of_p and of_r
            for place in places:
                result[row][place] = advantage * (len(generated) / (2 * len(places)) if weighted else 1.0)
    return result


def batch(generator, rows=None):
    """Random rewards, lengths, masks with gaps, and ids of mixed types."""
    rows, width = rows or generator.randint(1, 12), generator.randint(1, 9)
    # A few values only, so that groups with equal rewards are common.
    rewards = [[generator.choice([0.0, 0.1, 0.7, 1.2, 2.2]) for _ in range(rows)] for _ in range(2)]
    length = [generator.randint(0, width + 1) for _ in range(rows)]
    mask = [[int(generator.random() < 0.8) for _ in range(width)] for _ in range(rows)]
    ids = [generator.choice(["a", "b", 3, ("c", 1), None]) for _ in range(rows)]
    valid = [generator.random() < 0.8 for _ in range(rows)]
    return rewards, length, mask, ids, valid


def test_random_batches_match_slow_reference_loop():
    generator = random.Random(0)
    for case in range(1500):
        (p, r), length, mask, ids, valid = batch(generator)
        settings = {
            "norm_by_std": generator.random() < 0.7,
            "epsilon": generator.choice([1e-6, 1e-2]),
            "separate": generator.random() < 0.7,
            "segment_weighting": generator.choice(["token", "segment"]),
        }
        cross = generator.choice([0.0, 0.5, 1.5]) if settings["separate"] else 0.0
        ours = pa_grpo_advantages(
            torch.tensor(p), torch.tensor(r), torch.tensor(length), torch.tensor(mask), ids,
            perception_valid=torch.tensor(valid), cross_credit=cross, **settings,
        )  # fmt: skip
        assert ours.dtype == torch.float32
        expected = torch.tensor(slow(p, r, length, mask, ids, valid=valid, cross=cross, **settings))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, msg=lambda text, case=case: f"{case}: {text}")


def test_many_long_rows_match_torch_mean_and_std():
    generator = torch.Generator().manual_seed(0)
    p, r = torch.rand(2, 700, generator=generator)
    length = torch.randint(0, 1025, (700,), generator=generator)
    mask = torch.rand(700, 1024, generator=generator) < 0.9
    ours = pa_grpo_advantages(p, r, length, mask, [row // 7 for row in range(700)], epsilon=0.0)
    groups_p, groups_r = p.view(100, 7), r.view(100, 7)
    a_p = (groups_p - groups_p.mean(1, keepdim=True)) / groups_p.std(1, keepdim=True)
    a_r = (groups_r - groups_r.mean(1, keepdim=True)) / groups_r.std(1, keepdim=True)
    expected = torch.where(torch.arange(1024) < length[:, None], a_p.view(-1, 1), a_r.view(-1, 1)) * mask
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def verl_grpo():
    os.environ.setdefault("VERL_PLATFORM", "cpu")
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    def advantages(rewards, mask, ids, norm_by_std):
        token_rewards = torch.zeros(mask.shape)
        token_rewards[:, -1] = rewards  # verl sums over tokens
        return compute_grpo_outcome_advantage(token_rewards, mask, ids, norm_adv_by_std_in_grpo=norm_by_std)[0]

    return advantages


@pytest.mark.parametrize("norm_by_std", [True, False])
def test_advantages_without_perception_equal_verl_grpo(verl_grpo, norm_by_std):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        rows = int(torch.randint(1, 30, (1,), generator=generator))
        rewards = torch.rand(rows, generator=generator)
        length = torch.randint(0, 8, (rows,), generator=generator)
        mask = (torch.rand(rows, 7, generator=generator) < 0.8).long()
        ids = np.array(
            [f"uid-{int(group)}" for group in torch.randint(0, 6, (rows,), generator=generator)], dtype=object
        )
        theirs = verl_grpo(rewards, mask, ids, norm_by_std)

        def ours(separate, rewards=rewards, length=length, mask=mask, ids=ids):
            zero = torch.zeros_like(rewards)
            return pa_grpo_advantages(zero, rewards, length, mask, ids, separate=separate, norm_by_std=norm_by_std)

        torch.testing.assert_close(ours(separate=False), theirs, rtol=1e-4, atol=1e-5)
        before = torch.arange(7) < length[:, None]
        alone = torch.where(before, torch.zeros(()), theirs)
        torch.testing.assert_close(ours(separate=True), alone, rtol=1e-4, atol=1e-5)


def test_advantage_invariants_hold_on_random_batches():
    generator = random.Random(2)
    for _ in range(500):
        (p, r), length, mask, ids, _ = batch(generator)
        p, r, length, mask = torch.tensor(p), torch.tensor(r), torch.tensor(length), torch.tensor(mask)
        advantages = pa_grpo_advantages(p, r, length, mask, ids)
        assert not advantages[mask == 0].any()

        # Order equivariance: shuffled rows give shuffled advantages.
        order = generator.sample(range(len(ids)), len(ids))
        shuffled = pa_grpo_advantages(p[order], r[order], length[order], mask[order], [ids[row] for row in order])
        torch.testing.assert_close(shuffled, advantages[order], rtol=1e-4, atol=1e-5)

        # A perception reward never moves a reasoning token, nor vice versa, exactly.
        before = torch.arange(mask.shape[1]) < length[:, None]
        other = torch.rand(len(ids), generator=torch.Generator().manual_seed(generator.randint(0, 999)))
        assert torch.equal(pa_grpo_advantages(other, r, length, mask, ids)[~before], advantages[~before])
        assert torch.equal(pa_grpo_advantages(p, other, length, mask, ids)[before], advantages[before])
        # Cross credit moves tokens of P only; a credit of 0 is the default, bit for bit.
        crossed = pa_grpo_advantages(p, r, length, mask, ids, cross_credit=0.5)
        assert torch.equal(crossed[~before], advantages[~before])
        assert torch.equal(pa_grpo_advantages(p, r, length, mask, ids, cross_credit=0.0), advantages)

        # In a group of two or more the mean is 0.
        whole = pa_grpo_advantages(p, r, length, torch.ones(len(ids), 1), ids, separate=False)
        for group in set(ids):
            members = [row for row, name in enumerate(ids) if name == group]
            if len(members) > 1:
                assert abs(whole[members].mean().item()) < 1e-5


@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3, 1e-30, -123456.789, 3e30])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
@pytest.mark.parametrize("norm_by_std", [True, False])
def test_equal_rewards_give_exactly_zero(reward, size, norm_by_std):
    # In float32 the mean of equal rewards may miss them by a bit, which ε = 1e-6 would turn into an advantage.
    rewards = torch.full((size,), reward)
    mask = torch.ones(size, 4, dtype=torch.bool)
    for separate in (True, False):
        advantages = pa_grpo_advantages(
            rewards, rewards, torch.full((size,), 2), mask, [0] * size, norm_by_std=norm_by_std, separate=separate
        )
        assert not advantages.any()


@pytest.mark.parametrize("without_verdict", [-1e6, -3.3, 0.037, 0.05, 1e6])
def test_equal_rewards_give_exactly_zero_next_to_row_without_verdict(without_verdict):
    rewards = torch.full((8,), 0.1)
    rewards[3] = without_verdict
    valid = torch.arange(8) != 3
    length, mask = torch.full((8,), 4), torch.ones(8, 4)
    assert not pa_grpo_advantages(rewards, rewards, length, mask, [0] * 8, perception_valid=valid).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rewards_of_other_dtypes_are_computed_in_float32(dtype):
    rewards = {name: GOLDEN[name].to(dtype) for name in ("perception_rewards", "reasoning_rewards")}
    assert golden(**rewards).dtype == torch.float32
    assert torch.equal(golden(**rewards), golden())


def test_group_ids_and_masks_of_any_type_give_same_advantages():
    numbers = [0, 1, 0, 1]
    expected = golden(group_ids=numbers)
    assert not torch.equal(expected, golden())
    uuids = np.array(["x", "y", "x", "y"], dtype=object)
    for ids in (np.array(numbers), torch.tensor(numbers), uuids, tuple(numbers), np.array(["x", "y", "x", "y"])):
        assert torch.equal(golden(group_ids=ids), expected)
    for mask in (MASK.bool(), MASK.float(), MASK.to(torch.int32)):
        assert torch.equal(golden(group_ids=numbers, response_mask=mask), expected)


def test_an_empty_batch_gives_an_empty_result():
    none = torch.zeros(0)
    assert pa_grpo_advantages(none, none, none.long(), torch.zeros(0, 5), []).shape == (0, 5)


@pytest.mark.parametrize("name", ["perception_rewards", "reasoning_rewards"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
def test_non_finite_reward_raises_error_with_its_row(name, value):
    rewards = GOLDEN[name].double()
    rewards[2] = value
    with pytest.raises(ValueError, match=rf"{name}\[2\] is (nan|-?inf)"):
        golden(**{name: rewards, "perception_valid": torch.tensor([True, True, False, True])})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"perception_rewards": torch.zeros(3)}, r"perception_rewards of shape \(4,\).* got \(3,\)"),
        ({"reasoning_rewards": torch.zeros(4, 1)}, r"reasoning_rewards of shape \(4,\).* got \(4, 1\)"),
        ({"perception_length": torch.zeros(5, dtype=torch.int64)}, r"perception_length of shape \(4,\)"),
        ({"perception_valid": torch.ones(1, dtype=torch.bool)}, r"perception_valid of shape \(4,\)"),
        ({"response_mask": torch.ones(4)}, r"response_mask of shape \(bs, L\), got \(4,\)"),
        ({"group_ids": ["a"] * 3}, r"group_ids of shape \(4,\)"),
        ({"group_ids": torch.tensor(1)}, r"group_ids of shape \(4,\)"),
        ({"segment_weighting": "word"}, "segment_weighting must be .*'word'"),
        ({"cross_credit": -0.5}, "cross_credit must be finite and at least 0, got -0.5"),
        ({"cross_credit": math.nan}, "cross_credit must be finite and at least 0, got nan"),
        ({"cross_credit": 0.5, "separate": False}, "cross_credit is 0.5 with separate=False"),
    ],
)
def test_mismatched_shapes_and_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        golden(**changes)
