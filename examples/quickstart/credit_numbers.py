# SPDX-License-Identifier: Apache-2.0
"""How good a rule's gradient estimate is: expected cosine of a step, signal-to-noise ratio, jackknife intervals.

Notation, for the estimate g that a rule makes from one group of responses to a random prompt:

    V = E[g]            its mean over prompts and groups
    S = E|g|²           its mean square
    T                   the true gradient of E[R_P + R_R]

    SNR of a group      |V|² / (S − |V|²)
    cosine of a step    V·T / √((S / B + (1 − 1/B) |V|²) |T|²)       for B prompts a step, to first order

Inner products of means over prompts (|V|², V·T, |T|²) are estimated from pairs of different prompts alone. A prompt's
product with itself contains its sampling noise and its deviation from the mean, and would look like signal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NORMAL = 1.959964  # 97.5 % quantile


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; NaN where it does not exist."""

    value: float
    low: float
    high: float

    @classmethod
    def of_jackknife(cls, values: Tensor) -> "Interval":
        """Read an estimate and its delete-one values.

        The standard error is √((n − 1) / n · Σ (v_i − v̄)²) over the n values that leave out one prompt each (Tukey,
        1958). The bootstrap is not used because it repeats prompts, and repeated prompts look like signal.

        Args:
            values: the estimate from all prompts, then those that leave out one. Shape: (n + 1,).

        >>> Interval.of_jackknife(torch.tensor([2.0, 2.5, 2.0, 1.5]))  # means of 1, 2, 3: the error is 1 / √3
        Interval(value=2.0, low=0.868, high=3.132)
        """
        left_out = values[1:].double()
        n = len(left_out)
        error = float(((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt())
        value = float(values[0])
        return cls(*(round(number, 3) for number in (value, value - _NORMAL * error, value + _NORMAL * error)))


@dataclass(frozen=True)
class Moments:
    """What the estimates of one rule have in common, by prompt.

    Args:
        mean: mean of g over the groups of each prompt. Shape: (N, D).
        square: mean of |g|² over the groups of each prompt. Shape: (N,).
    """

    mean: Tensor
    square: Tensor

    @classmethod
    def stack(cls, prompts: Sequence["Moments"]) -> "Moments":
        """Join the moments of single prompts, of shapes (D,) and ()."""
        return cls(torch.stack([one.mean for one in prompts]), torch.stack([one.square for one in prompts]))


def mean_left_out(values: Tensor) -> Tensor:
    """Mean over prompts, from all of them and then without each one.

    Args:
        values: Shape: (N,).

    Returns:
        Shape: (N + 1,), float64.

    >>> mean_left_out(torch.tensor([1.0, 2.0, 6.0])).tolist()
    [3.0, 4.0, 3.5, 1.5]
    """
    values = values.double()
    total, n = values.sum(), len(values)
    return torch.cat([(total / n)[None], (total - values) / (n - 1)])


def product_left_out(one: Tensor, other: Tensor) -> Tensor:
    """Inner product of two means over prompts, from all prompts and then without each one.

    Args:
        one: Shape: (N, D), N at least 3.
        other: Shape: (N, D).

    Returns:
        The means of `one[x] · other[y]` over pairs x ≠ y. Shape: (N + 1,), float64.

    >>> product_left_out(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [1.0], [1.0]])).round(decimals=3)
    tensor([2.3330, 3.0000, 2.5000, 1.5000], dtype=torch.float64)
    """
    one, other = one.double(), other.double()
    n = len(one)
    if n < 3:
        raise ValueError(f"an interval needs at least 3 prompts, got {n}")
    own = (one * other).sum(1)
    with_others = one @ other.sum(0) + other @ one.sum(0) - 2 * own  # all pairs that a prompt takes part in
    pairs = one.sum(0) @ other.sum(0) - own.sum()
    return torch.cat([(pairs / (n * (n - 1)))[None], (pairs - with_others) / ((n - 1) * (n - 2))])


def signal_to_noise(rule: Moments) -> Tensor:
    """SNR of one group: |V|² / (S − |V|²), from all prompts and then without each one. Shape: (N + 1,)."""
    signal = product_left_out(rule.mean, rule.mean)
    return signal / (mean_left_out(rule.square) - signal)


def step_cosine(rule: Moments, truth: Tensor, batch: int) -> Tensor:
    """Expected cosine between one step and the true gradient, from all prompts and then without each one.

    Args:
        rule: the rule's moments.
        truth: gradient of E[R_P + R_R] at each prompt. Shape: (N, D).
        batch: prompts a step.

    Returns:
        Shape: (N + 1,), NaN where an estimated square is not positive.
    """
    signal = product_left_out(rule.mean, rule.mean)
    step = mean_left_out(rule.square) / batch + (1 - 1 / batch) * signal
    return product_left_out(rule.mean, truth) / (step * product_left_out(truth, truth)).sqrt()


def measure(rules: Mapping[str, Moments], truth: Tensor, batch: int, reference: str) -> dict[str, dict[str, Interval]]:
    """Measure every rule, with the difference of its cosine to a reference from the same prompts.

    Args:
        rules: moments by the rule's name.
        truth: gradient of E[R_P + R_R] at each prompt. Shape: (N, D).
        batch: prompts a step.
        reference: the rule that the others are compared with.

    Returns:
        By rule: `cosine` and `difference` in percent, and `snr` in thousandths.
    """
    cosines = {name: 100 * step_cosine(moments, truth, batch) for name, moments in rules.items()}
    return {
        name: {
            "cosine": Interval.of_jackknife(cosines[name]),
            "difference": Interval.of_jackknife(cosines[name] - cosines[reference]),
            "snr": Interval.of_jackknife(1000 * signal_to_noise(moments)),
        }
        for name, moments in rules.items()
    }
