# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on what a run will need, to see before it starts whether it fits.

Exact figures (parameters, shards, tokens) follow verl 0.9.1's rules; the others rest on `Assumed`. Every line carries
its formula. Only a step's training passes have been compared with a GPU.
"""

from verl_p2r.planner.faults import faults
from verl_p2r.planner.job import (
    GPUS,
    PHASES,
    Assumed,
    Engine,
    Gpu,
    Job,
    Judging,
    Lengths,
    Line,
    Rollout,
    SecondAnswers,
    giga,
    total,
)
from verl_p2r.planner.memory import cache_tokens, host, memory, traffic
from verl_p2r.planner.seconds import step_time
from verl_p2r.planner.sharing import variants
from verl_p2r.planner.tokens import SHAPES, count, text_estimate, worst_media

__all__ = [
    "GPUS",
    "PHASES",
    "SHAPES",
    "Assumed",
    "Engine",
    "Gpu",
    "Job",
    "Judging",
    "Lengths",
    "Line",
    "Rollout",
    "SecondAnswers",
    "cache_tokens",
    "count",
    "faults",
    "giga",
    "host",
    "memory",
    "step_time",
    "text_estimate",
    "total",
    "traffic",
    "variants",
    "worst_media",
]
