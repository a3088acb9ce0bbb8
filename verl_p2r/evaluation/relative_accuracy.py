# SPDX-License-Identifier: Apache-2.0
"""Mean relative accuracy, the metric of VSI-Bench's numeric questions, in both published forms."""

import math

import numpy as np

# The thresholds θ as each published code computes them: rounding decides what happens at a tie.
_OFFICIAL = tuple(float(1 - theta) for theta in np.linspace(0.5, 0.95, 10))
_VIDEO_R1 = tuple(np.float32(1) - np.float32(0.5 + 0.05 * i) for i in range(10))
_EPSILON = np.float32(1e-8)


def mean_relative_accuracy(prediction: float, truth: float, *, inclusive: bool) -> float:
    """Score a number by how many of ten tolerances it meets.

        MRA = 1/10 · Σ_θ [ |prediction − truth| / |truth|  ≤  1 − θ ],   θ ∈ {0.50, 0.55, …, 0.95}

    (arXiv 2412.14171). VSI-Bench's paper writes "<" and its code has "≤", in double precision; Video-R1's code has "<",
    in single precision and with 1e-8 added to |truth|. Each form is reproduced with its own rounding, which decides
    ties: 9 for 10 meets nine tolerances in both.

    Args:
        prediction: the predicted number.
        truth: the true number.
        inclusive: True for VSI-Bench's code ("≤"), False for Video-R1's ("<").

    Returns:
        The accuracy, one of 0, 0.1, …, 1. A number that is not finite scores 0.

    Edge rules [ours]:
        VSI-Bench's code divides by `truth` itself; we divide by its magnitude. For a true 0, where it fails, only a
        predicted 0 scores, with 1.

    >>> mean_relative_accuracy(3, 4, inclusive=True), mean_relative_accuracy(3, 4, inclusive=False)
    (0.6, 0.5)
    """
    if not math.isfinite(prediction) or not math.isfinite(truth):
        return 0.0
    if truth == 0:
        return float(prediction == 0)
    if inclusive:
        error = abs(prediction - truth) / abs(truth)
        return sum(error <= tolerance for tolerance in _OFFICIAL) / 10
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # beyond single precision: the error is inf or NaN and meets none
        error32 = abs(np.float32(prediction) - np.float32(truth)) / (abs(np.float32(truth)) + _EPSILON)
        return sum(bool(error32 < tolerance) for tolerance in _VIDEO_R1) / 10
