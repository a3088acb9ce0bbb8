# SPDX-License-Identifier: Apache-2.0
"""Credit rules, the four parts of the estimate, and noisy rewards, applied to the stored gradients of one prompt.

Every advantage comes from the estimator that training uses, `verl_p2r.advantages.pa_grpo_advantages`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from credit_gradients import PromptGradients
from credit_numbers import Moments
from torch import Tensor

from verl_p2r.advantages import pa_grpo_advantages

GROUP = 8
"""Responses to a prompt in one step, as in `rl.sh`."""
SHUFFLES = 4
"""How often a prompt's samples are dealt into groups."""

Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes R_P and R_R of shape (groups, GROUP); returns the advantages on perception and on reasoning tokens."""


def estimator(**settings: float | bool) -> Rule:
    """A rule that is one call of the shipped estimator."""

    def rule(perception: Tensor, reasoning: Tensor) -> tuple[Tensor, Tensor]:
        groups, size = perception.shape
        rows = groups * size
        advantages = pa_grpo_advantages(
            perception.reshape(rows),
            reasoning.reshape(rows),
            torch.ones(rows, dtype=torch.int64),  # a response of two tokens: one of perception, one of reasoning
            torch.ones(rows, 2),
            torch.arange(groups).repeat_interleave(size),
            **settings,
        ).view(groups, size, 2)
        return advantages[..., 0], advantages[..., 1]

    return rule


PA_GRPO = estimator()


def reasoning_only(perception: Tensor, reasoning: Tensor) -> tuple[Tensor, Tensor]:
    """GRPO on the reasoning reward alone: A_R on every token."""
    return estimator(separate=False)(torch.zeros_like(perception), reasoning)


def with_control_variate(perception: Tensor, reasoning: Tensor) -> tuple[Tensor, Tensor]:
    """λ = 0.5, and A_R − 0.3 A_P on reasoning tokens: A_P cancels a part of the noise and changes no mean."""
    a_p, a_r = PA_GRPO(perception, reasoning)
    return a_p + 0.5 * a_r, a_r - 0.3 * a_p


REFERENCE = "PA-GRPO"
RULES: Mapping[str, Rule] = {
    REFERENCE: PA_GRPO,
    "sum": estimator(separate=False),
    "reasoning only": reasoning_only,
    "λ = 0.25": estimator(cross_credit=0.25),
    "λ = 0.5": estimator(cross_credit=0.5),
    "λ = 1": estimator(cross_credit=1.0),
    "λ = 0.5, β = 0.3": with_control_variate,
    "PA-GRPO, no std": estimator(norm_by_std=False),
    "sum, no std": estimator(norm_by_std=False, separate=False),
    "reward-to-go": estimator(norm_by_std=False, cross_credit=1.0),
}


def _part(of: int, on: int) -> Rule:
    def rule(perception: Tensor, reasoning: Tensor) -> tuple[Tensor, Tensor]:
        advantage = PA_GRPO(perception, reasoning)[of]
        nothing = torch.zeros_like(advantage)
        return (advantage, nothing) if on == 0 else (nothing, advantage)

    return rule


PARTS: Mapping[str, Rule] = {
    "A_P on perception": _part(0, 0),
    "A_R on perception": _part(1, 0),
    "A_R on reasoning": _part(1, 1),
    "A_P on reasoning": _part(0, 1),
}
"""The four parts of which every rule with unit standard deviation is a weighted sum."""


@dataclass(frozen=True)
class Noise:
    """Shares of the samples whose verdict, and whose answer's accuracy, is replaced by its opposite."""

    verdicts: float = 0.0
    answers: float = 0.0


def true_gradient(prompt: PromptGradients) -> Tensor:
    """The gradient of E[R_P + R_R] at one prompt: the unbiased covariance of clean rewards and scores. Shape: (D,)."""
    number = int(prompt.count.sum())
    share = prompt.count / (number - 1)
    weights = []
    for reward in (prompt.perception[:, 0] + prompt.reasoning[:, 0], prompt.reasoning[:, 0]):
        weights.append(share * (reward - (prompt.count * reward).sum() / number))
    # R_P is fixed before the first reasoning token, so its covariance with them is zero and is left out.
    return _combine(prompt, *weights)


def moments(prompt: PromptGradients, noise: Noise, rules: Mapping[str, Rule], seed: int) -> dict[str, Moments]:
    """Deal a prompt's samples into groups, and average what each rule makes of them.

    Args:
        prompt: the responses with rewards and gradients.
        noise: how often rewards are wrong; drawn for each sample.
        rules: the rules by name; all see the same groups and the same noise.
        seed: seed of groups and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    number = int(prompt.count.sum())
    kept = number // GROUP * GROUP
    samples = torch.repeat_interleave(torch.arange(len(prompt.count)), prompt.count)
    deals = [samples[torch.randperm(number, generator=generator)][:kept] for _ in range(SHUFFLES)]
    index = torch.cat(deals).view(-1, GROUP)
    perception, reasoning = (
        table[index, (torch.rand(index.shape, generator=generator) < share).long()]
        for table, share in ((prompt.perception, noise.verdicts), (prompt.reasoning, noise.answers))
    )
    scores = torch.cat([prompt.perception_gradients, prompt.reasoning_gradients])
    gram = scores @ scores.T
    result = {}
    for name, rule in rules.items():
        on_perception, on_reasoning = rule(perception, reasoning)
        weights = torch.zeros(len(index), len(scores))
        weights.scatter_add_(1, prompt.observation[index], on_perception / GROUP)
        weights.scatter_add_(1, index + len(prompt.perception_gradients), on_reasoning / GROUP)
        result[name] = Moments(weights.mean(0) @ scores, ((weights @ gram) * weights).sum(1).mean())
    return result


def _combine(prompt: PromptGradients, on_perception: Tensor, on_reasoning: Tensor) -> Tensor:
    """Weighted sum of the scores of all responses; weights of shape (U,)."""
    by_observation = torch.zeros(len(prompt.perception_gradients)).index_add_(0, prompt.observation, on_perception)
    return by_observation @ prompt.perception_gradients + on_reasoning @ prompt.reasoning_gradients
