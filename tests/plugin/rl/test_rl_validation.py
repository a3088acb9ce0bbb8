# SPDX-License-Identifier: Apache-2.0
"""The bootstrap of validation metrics, against verl's own function."""

import random
from functools import partial

import numpy as np
import pytest
from verl.trainer.ppo import metric_utils

from verl_p2r.plugin.rl import validation

BEST_WORST = [np.max, np.min]


def values(kind: str, count: int) -> list:
    draw = random.Random(f"{kind} {count}")
    one = {
        "rewards": lambda: draw.choice([0.0, 1.0, 2.5, draw.random()]),
        "counts": lambda: draw.randrange(512),
        "flags": lambda: draw.random() < 0.5,
        "float32": lambda: np.float32(draw.random()),
        "mixed": lambda: draw.choice([1, 0.5, True]),
        "not finite": lambda: draw.choice([1.0, float("nan"), float("inf")]),
    }[kind]
    return [one() for _ in range(count)]


@pytest.mark.parametrize("kind", ["rewards", "counts", "flags", "float32", "mixed", "not finite"])
@pytest.mark.parametrize(("count", "subset"), [(2, 2), (4, 2), (4, 4), (8, 8), (5, 3), (1, 1)])
def test_best_and_worst_are_verls_to_the_last_bit(kind, count, subset):
    data = values(kind, count)
    for seed in (42, 7):
        ours = validation.bootstrap_metric(data, subset, BEST_WORST, n_bootstrap=200, seed=seed)
        verls = validation.verls_bootstrap(data, subset, BEST_WORST, n_bootstrap=200, seed=seed)
        np.testing.assert_array_equal(ours, verls)  # where both are NaN they count as equal


def test_majority_votes_are_left_to_verl():
    data = [{"val": float(i % 3), "pred": "ABC"[i % 3]} for i in range(8)]
    vote = [partial(metric_utils.calc_maj_val, vote_key="pred", val_key="val")]
    assert validation.bootstrap_metric(data, 4, vote) == validation.verls_bootstrap(data, 4, vote)


def test_numpys_own_random_state_is_left_alone():
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    validation.bootstrap_metric([1.0, 2.0, 3.0], 2, BEST_WORST)
    assert np.random.rand() == expected


def test_verls_validation_metrics_use_it_and_stay_the_same(monkeypatch):
    assert metric_utils.bootstrap_metric is validation.bootstrap_metric
    sources = ["a"] * 12 + ["b"] * 8
    uids = [f"{i // 4}" for i in range(20)]
    infos = {
        "reward": values("rewards", 20),
        "perception_accuracy": [None, *values("flags", 19)],  # a rollout without a verdict
        "pred": ["AB"[i % 2] for i in range(20)],
        "judge_error": [""] * 20,
    }
    ours = metric_utils.process_validation_metrics(sources, uids, infos)
    monkeypatch.setattr(metric_utils, "bootstrap_metric", validation.verls_bootstrap)
    assert metric_utils.process_validation_metrics(sources, uids, infos) == ours
    assert "best@4/mean" in ours["a"]["reward"]
