# SPDX-License-Identifier: Apache-2.0
"""Time PA-GRPO's advantages against verl's two GRPO estimators and against writing the output once.

    python benchmarks/advantages.py [--quick] [--record]

One run measures all four in turn, on one batch of 4,096 responses of up to 1,024 tokens in groups of 8. The last line
is a JSON object: `vs_verl_grpo` and `vs_verl_vectorized` say how many times faster than verl's we are (targets 10 and
1), `vs_write_once` how many times the time of writing the output we take (target 3).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import uuid
from collections.abc import Callable

import numpy as np
import recording
import torch

os.environ.setdefault("VERL_PLATFORM", "cpu")

from verl.trainer.ppo.core_algos import (
    compute_grpo_outcome_advantage,
    compute_grpo_vectorized_outcome_advantage,
)

from verl_p2r.advantages import pa_grpo_advantages

ROWS, TOKENS, GROUP = 4096, 1024, 8


def contenders() -> dict[str, Callable[[], object]]:
    """Make one batch, with masks and ids of the types verl hands over, and what is to be timed on it."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(TOKENS // 4, TOKENS + 1, (ROWS,), generator=generator)
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    perception_length = (lengths * torch.rand(ROWS, generator=generator)).long()
    perception, reasoning = torch.rand(2, ROWS, generator=generator)
    token_rewards = torch.zeros(ROWS, TOKENS)
    token_rewards[torch.arange(ROWS), lengths - 1] = reasoning
    uids = np.array([str(uuid.UUID(int=row // GROUP)) for row in range(ROWS)], dtype=object)
    return {
        "pa_grpo (ours)": lambda: pa_grpo_advantages(perception, reasoning, perception_length, mask, uids),
        "verl grpo": lambda: compute_grpo_outcome_advantage(token_rewards, mask, uids),
        "verl grpo_vectorized": lambda: compute_grpo_vectorized_outcome_advantage(token_rewards, mask, uids),
        "write the output once": lambda: torch.full((ROWS, TOKENS), 1.0),
    }


def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Give each function's median time in seconds over interleaved rounds; each round warms each one up first."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds; ends within 50 seconds")
    recording.add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # with more, a busy neighbour on one core decides the figures
    rounds = 11 if arguments.quick else 51
    ours, grpo, vectorized, write = (measured := measure(contenders(), rounds)).values()
    print(f"({ROWS}, {TOKENS}), groups of {GROUP}, one thread, median of {rounds} rounds")
    for name, seconds in measured.items():
        print(f"{name:24}{seconds * 1e3:9.2f} ms{seconds / ours:9.2f} × ours")
    ratios = {"vs_verl_grpo": grpo / ours, "vs_verl_vectorized": vectorized / ours, "vs_write_once": ours / write}
    recording.finish("advantages", {name: round(ratio, 2) for name, ratio in ratios.items()}, arguments)


if __name__ == "__main__":
    main()
