# SPDX-License-Identifier: Apache-2.0
"""How good a credit rule is: cosine, signal-to-noise, jackknife, groups and noise, against hand-worked numbers."""

import itertools
import json
import math
import sys

import pytest
import torch
from paths import QUICKSTART, ROOT

sys.path.insert(0, str(QUICKSTART))

import credit
import credit_gradients
import credit_numbers
import credit_report
import credit_rules
from credit_numbers import Moments
from credit_rules import Noise
from quickstart_runs import PNG, invoke


def test_products_of_means_use_pairs_of_different_prompts_and_leave_one_out():
    one = torch.tensor([[1.0, 2.0], [3.0, 0.0], [-1.0, 4.0], [2.0, 2.0]])
    other = torch.tensor([[0.5, 1.0], [1.0, -2.0], [3.0, 1.0], [0.0, 2.0]])

    def by_loop(prompts):
        pairs = list(itertools.permutations(prompts, 2))
        return sum(float(one[x] @ other[y]) for x, y in pairs) / len(pairs)

    expected = [by_loop(range(4)), *(by_loop([x for x in range(4) if x != out]) for out in range(4))]
    assert credit_numbers.product_left_out(one, other).tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least 3 prompts, got 2"):
        credit_numbers.product_left_out(one[:2], other[:2])


def test_cosine_and_signal_to_noise_by_hand():
    # Every prompt has the mean estimate (3, 4), of square 25, and a mean square of 125: the SNR is 25 / 100.
    # The truth is (1, 0). A step of 4 prompts has E|g|² = 125 / 4 + 3 / 4 · 25 = 50, so the cosine is 3 / √50.
    rule = Moments(torch.tensor([[3.0, 4.0]]).repeat(3, 1), torch.full((3,), 125.0))
    truth = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    assert credit_numbers.signal_to_noise(rule).tolist() == pytest.approx([0.25] * 4)
    assert credit_numbers.step_cosine(rule, truth, batch=4).tolist() == pytest.approx([3 / math.sqrt(50)] * 4)
    # One prompt a step: E|g|² = 125.
    assert float(credit_numbers.step_cosine(rule, truth, batch=1)[0]) == pytest.approx(3 / math.sqrt(125))


def test_noise_of_the_samples_is_not_taken_for_signal():
    # Estimates without a mean: squares of the prompts' own means would look like a signal of 1.
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(400, 64, generator=generator) / 8
    signal = float(credit_numbers.product_left_out(mean, mean)[0])
    assert float(mean.mean(0) @ mean.mean(0)) == pytest.approx(1 / 400, rel=0.6)
    assert abs(signal) < 1.4e-3  # its standard deviation is √2 / (8 · 400) = 4.4e-4


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.tensor([1.0, 4.0, 2.0, 7.0, 3.0])
    interval = credit_numbers.Interval.of_jackknife(credit_numbers.mean_left_out(values))
    error = float(values.std() / math.sqrt(5))
    assert interval.value == pytest.approx(3.4)
    assert (interval.low, interval.high) == pytest.approx((3.4 - 1.96 * error, 3.4 + 1.96 * error), abs=1e-3)


def test_a_rule_compared_with_itself_differs_by_nothing():
    generator = torch.Generator().manual_seed(1)
    mean = 1 + torch.randn(12, 4, generator=generator)
    rules = {"a": Moments(mean, torch.full((12,), 40.0)), "b": Moments(-mean, torch.full((12,), 40.0))}
    found = credit_numbers.measure(rules, mean, 16, "a")
    assert vars(found["a"]["difference"]) == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["b"]["difference"].value == pytest.approx(-2 * found["a"]["cosine"].value, abs=2e-3)


def test_rules_by_hand():
    perception, reasoning = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    # Without std: A_P = (½, −½), A_R = (−1, 1), and of the sum (−½, ½).
    to_go = credit_rules.RULES["reward-to-go"](perception, reasoning)
    assert [part.tolist() for part in to_go] == [[[-0.5, 0.5]], [[-1.0, 1.0]]]
    summed = credit_rules.RULES["sum, no std"](perception, reasoning)
    assert [part.tolist() for part in summed] == [[[-0.5, 0.5]]] * 2
    # With it, every A is ±1/√2, because the unbiased deviation of (a, b) is |a − b| / √2.
    unit = 1 / math.sqrt(2)
    expected = {
        "PA-GRPO": (unit, -unit),
        "sum": (-unit, -unit),
        "reasoning only": (-unit, -unit),
        "λ = 0.5": (unit / 2, -unit),
        "λ = 1": (0.0, -unit),
        "λ = 0.5, β = 0.3": (unit / 2, -1.3 * unit),
    }
    for name, (on_perception, on_reasoning) in expected.items():
        found = credit_rules.RULES[name](perception, reasoning)
        assert [float(part[0, 0]) for part in found] == pytest.approx([on_perception, on_reasoning], abs=1e-5), name


def prompt(counts=(3, 4, 5)) -> credit_gradients.PromptGradients:
    """Three responses, of which the first two share their observation."""
    return credit_gradients.PromptGradients(
        count=torch.tensor(counts),
        perception=torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0]]),
        reasoning=torch.tensor([[2.0, 1.0], [1.0, 2.0], [1.0, 2.0]]),
        right=torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]),
        observation=torch.tensor([0, 0, 1]),
        perception_gradients=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        reasoning_gradients=torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.5, 0.0, 0.0]]),
    )


def test_the_true_gradient_is_the_covariance_of_rewards_and_scores():
    found, one = credit_rules.true_gradient(prompt()), prompt()
    samples = [index for index, count in enumerate(one.count.tolist()) for _ in range(count)]
    total = [float(one.perception[i, 0] + one.reasoning[i, 0]) for i in samples]
    answer = [float(one.reasoning[i, 0]) for i in samples]
    expected = torch.zeros(3)
    for i, both, own in zip(samples, total, answer, strict=True):
        expected += (both - sum(total) / 12) / 11 * one.perception_gradients[one.observation[i]]
        expected += (own - sum(answer) / 12) / 11 * one.reasoning_gradients[i]
    torch.testing.assert_close(found, expected)


def test_moments_of_one_group_are_those_of_a_slow_loop():
    one = prompt(counts=(2, 4, 2))  # eight samples: one group, whatever the order
    found = credit_rules.moments(one, Noise(), {"λ = 1": credit_rules.RULES["λ = 1"]}, seed=0)["λ = 1"]
    samples = [0] * 2 + [1] * 4 + [2] * 2
    perception = [float(one.perception[i, 0]) for i in samples]
    reasoning = [float(one.reasoning[i, 0]) for i in samples]

    def advantages(rewards):
        mean = sum(rewards) / 8
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 7)
        return [(r - mean) / (deviation + 1e-6) for r in rewards]

    step = torch.zeros(3)
    for i, a_p, a_r in zip(samples, advantages(perception), advantages(reasoning), strict=True):
        step += ((a_p + a_r) * one.perception_gradients[one.observation[i]] + a_r * one.reasoning_gradients[i]) / 8
    torch.testing.assert_close(found.mean, step)
    assert float(found.square) == pytest.approx(float(step @ step), rel=1e-5)


def test_noise_that_flips_everything_turns_the_advantages_round():
    rules = {"PA-GRPO": credit_rules.PA_GRPO}
    one = prompt(counts=(16, 24, 24))
    clean, flipped = (credit_rules.moments(one, noise, rules, 3)["PA-GRPO"] for noise in (Noise(), Noise(1.0, 1.0)))
    torch.testing.assert_close(flipped.mean, -clean.mean)
    some = credit_rules.moments(one, Noise(verdicts=0.5), rules, 3)["PA-GRPO"]
    assert not torch.allclose(some.mean, clean.mean)


def test_the_four_parts_add_up_to_the_sum_of_both_advantages():
    generator = torch.Generator().manual_seed(0)
    perception, reasoning = torch.rand(5, 8, generator=generator), torch.rand(5, 8, generator=generator)
    parts = [rule(perception, reasoning) for rule in credit_rules.PARTS.values()]
    a_p, a_r = credit_rules.PA_GRPO(perception, reasoning)
    for total in (sum(part[0] for part in parts), sum(part[1] for part in parts)):
        torch.testing.assert_close(total, a_p + a_r)


def test_a_count_sketch_keeps_inner_products():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 20_000, generator=generator)
    sketch = credit_gradients.CountSketch(20_000, 4096)
    third = one + other
    torch.testing.assert_close(sketch(third), sketch(one) + sketch(other), atol=1e-4, rtol=1e-4)
    for a, b in ((one, one), (one, other), (one, third)):
        error = float(sketch(a) @ sketch(b) - a @ b) / float(a.norm() * b.norm())
        assert abs(error) < 5 / math.sqrt(4096)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noise", "0.3"], "VERDICTS,ANSWERS"),
        (["--noise", "0.3,2"], "between 0 and 1"),
        (["--checkpoint", "sft"], "NAME=FOLDER"),
        (["--checkpoint", "SFT=/nowhere"], "no model.safetensors"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    result = invoke(credit.main, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_the_report_prints_tables_and_draws(tmp_path):
    found = [
        Moments(torch.eye(6)[:, :5] + 1, torch.full((6,), 40.0)) for _ in (*credit_rules.RULES, *credit_rules.PARTS)
    ]
    by_prompt = [
        credit.Measured(
            torch.eye(6)[x, :5] + 1,
            torch.tensor([0.5, 0.25]),
            [
                {
                    name: Moments(one.mean[x], one.square[x])
                    for name, one in zip((*credit_rules.RULES, *credit_rules.PARTS), found, strict=True)
                }
            ]
            * 2,
        )
        for x in range(6)
    ]
    entry = credit.summarise(by_prompt, [Noise(), Noise(verdicts=0.3)])
    assert (entry["prompts"], entry["perception"], entry["answer"]) == (6, 0.5, 0.25)
    path = tmp_path / "credit.json"
    path.write_text(json.dumps({"samples": 16, "checkpoints": {"SFT": entry}}))
    result = invoke(credit_report.main, path)
    assert result.exit_code == 0, result.output
    assert "| cosine of a step × 100 | clean | 30 % of verdicts flipped |" in result.output
    assert "| λ = 0.5 | +0.0 [0.0, 0.0] | +0.0 [0.0, 0.0] |" in result.output  # all rules were given equal moments
    assert (tmp_path / "credit.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("measured", "begin", "end", "tables"),
    [
        ("credit", "## What came out", "## On the harder task", 2),
        ("credit-harder-task", "## On the harder task", "## The pilot", 1),
    ],
)
def test_the_docs_page_shows_the_rows_of_its_measurements(measured, begin, end, tables):
    concepts = ROOT / "docs/concepts"
    made = list(credit_report.tables(json.loads((concepts / f"{measured}.json").read_text())))
    shown = (concepts / "credit.md").read_text().split(begin)[1].split(end)[0].splitlines()
    rows = [line for line in shown if line.startswith(("| PA-GRPO", "| sum", "| reasoning", "| λ", "| reward"))]
    assert len(rows) == tables * 8
    assert set(rows) <= {line for text in made for line in text.splitlines()}
    for part in (line for line in shown if line.startswith("| A_")):
        assert part.replace(" tokens", "") in "\n".join(made)
