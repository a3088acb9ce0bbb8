# SPDX-License-Identifier: Apache-2.0
"""Mean relative accuracy against the two published formulas, computed with the libraries they use."""

import math
import random

import numpy as np
import pytest
import torch

from verl_p2r.evaluation import mean_relative_accuracy


def official(prediction: float, truth: float) -> float:
    """VSI-Bench's formula in numpy's double precision."""
    thresholds = np.linspace(0.5, 0.95, int((0.95 - 0.5) / 0.05 + 2))
    return float((abs(prediction - truth) / truth <= 1 - thresholds).mean())


def video_r1(prediction: float, truth: float) -> float:
    """Video-R1's formula in torch's single precision."""
    p, t = (torch.tensor(value, dtype=torch.float32) for value in (prediction, truth))
    error = (p - t).abs() / (t.abs() + 1e-8)
    return (error < 1 - torch.arange(0.5, 0.95 + 0.025, 0.05, dtype=torch.float32)).float().mean().item()


@pytest.mark.parametrize(
    ("prediction", "truth", "inclusive", "expected"),
    [
        (4, 4, True, 1.0),  # no error meets all ten
        (4, 4, False, 1.0),
        (3, 4, True, 0.6),  # error 0.25: θ = 0.50 … 0.75 are met, the last one as a tie
        (3, 4, False, 0.5),
        (2, 4, True, 0.1),  # error 0.5: a tie at θ = 0.50 alone
        (2, 4, False, 0.0),
        (1, 4, True, 0.0),
        (3.9, 4, True, 1.0),  # error 0.025
        (6, 4, True, 0.1),  # too much counts as too little does
        (9, 4, True, 0.0),
        (0, 0, True, 1.0),
        (1, 0, True, 0.0),
        (1, 0, False, 0.0),
        (-3, -4, True, 0.6),
        (math.inf, 4, True, 0.0),
        (math.nan, 4, False, 0.0),
        (1e300, 4, False, 0.0),
    ],
)
def test_mean_relative_accuracy_matches_hand_computed_values(prediction, truth, inclusive, expected):
    assert mean_relative_accuracy(prediction, truth, inclusive=inclusive) == pytest.approx(expected, abs=1e-9)


def test_scores_equal_those_of_the_published_code():
    draw = random.Random(0)
    pairs = [(p, t) for t in range(1, 41) for p in range(81)]
    pairs += [(round(draw.uniform(0, 20), 2), round(draw.uniform(0.1, 20), 1)) for _ in range(3000)]
    ties = 0
    for prediction, truth in pairs:
        ours = [mean_relative_accuracy(prediction, truth, inclusive=inclusive) for inclusive in (True, False)]
        assert ours[0] == pytest.approx(official(prediction, truth), abs=1e-6), (prediction, truth)
        assert ours[1] == pytest.approx(video_r1(prediction, truth), abs=1e-6), (prediction, truth)
        ties += ours[0] != ours[1]
    assert ties > 50  # the two forms do differ
