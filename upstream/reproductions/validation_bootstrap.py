# SPDX-License-Identifier: Apache-2.0
"""Validation with several answers an item calls numpy's reductions thousands of times for each item and variable."""

from typing import Any

import numpy as np

THEN = "verl_p2r/plugin/rl/validation.py can go, with its lines in verl_p2r/plugin/__init__.py and hooks.yaml"
ANSWERS = [0.0, 1.0, 0.5, 1.0]


def fault() -> str | None:
    """Count the calls of `np.max` for one item with four answers and one variable."""
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    calls, largest = [], np.max

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return largest(*args, **kwargs)

    np.max = counting
    try:
        process_validation_metrics(["made"] * len(ANSWERS), ["item"] * len(ANSWERS), {"reward": ANSWERS})
    finally:
        np.max = largest
    if len(calls) < 100:
        return None
    return f"one item with {len(ANSWERS)} answers and one variable: np.max was called {len(calls)} times"
