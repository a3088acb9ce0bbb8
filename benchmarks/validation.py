# SPDX-License-Identifier: Apache-2.0
"""Time the metrics of a validation with several answers an item: verl's bootstrap against ours.

    python benchmarks/validation.py [--quick] [--record]

One run gives verl's `process_validation_metrics` the same answers twice, first with its own `bootstrap_metric`, then
with ours, and compares all numbers. The variables are as many as the reward manager `p2r` returns. The last line is a
JSON object: `bootstrap_ratio`, how many times faster ours is (target 20).
"""

from __future__ import annotations

import argparse
import os
import random
import time

os.environ.setdefault("VERL_PLATFORM", "cpu")

import recording
from verl.trainer.ppo import metric_utils

from verl_p2r.plugin.rl import validation

ANSWERS, VARIABLES = 4, 18
TARGET = 20.0


def measure(items: int) -> dict[str, float]:
    """Processor seconds of each side.

    Raises:
        RuntimeError: the two sides disagree about a number.
    """
    draw = random.Random(0)
    rows = items * ANSWERS
    infos = {f"variable {k}": [draw.choice([0.0, 1.0, draw.random()]) for _ in range(rows)] for k in range(VARIABLES)}
    uids = [str(row // ANSWERS) for row in range(rows)]
    seconds, found = {}, {}
    for side, function in (("verl", validation.verls_bootstrap), ("ours", validation.bootstrap_metric)):
        metric_utils.bootstrap_metric = function
        start = time.process_time()
        found[side] = metric_utils.process_validation_metrics(["made"] * rows, uids, infos)
        seconds[side] = time.process_time() - start
    if found["ours"] != found["verl"]:
        raise RuntimeError("the metrics differ")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="16 items instead of 256; within 50 seconds")
    recording.add_option(parser)
    arguments = parser.parse_args()
    items = 16 if arguments.quick else 256
    measure(1)  # loads what is loaded late
    seconds = measure(items)
    ratio = seconds["verl"] / seconds["ours"]
    print(f"{items} items, {ANSWERS} answers each, {VARIABLES} variables; the numbers are equal")
    for side, value in seconds.items():
        print(f"{side:6}{value:8.2f} s")
    print(f"{ratio:.0f} times faster; target at least {TARGET:g}: {'met' if ratio >= TARGET else 'MISSED'}")
    recording.finish("validation", {"bootstrap_ratio": round(ratio, 1)}, arguments)


if __name__ == "__main__":
    main()
