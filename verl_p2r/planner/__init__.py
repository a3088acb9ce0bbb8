# SPDX-License-Identifier: Apache-2.0
"""What a run will take, as arithmetic, to see before it starts whether it fits.

What is exact (parameters, shards, tokens) follows verl 0.9.1's own rules; what is not is in `Assumed`, and every line
carries its formula. Nothing here has been compared with a GPU yet.
"""

from verl_p2r.planner.faults import faults
from verl_p2r.planner.job import (
    GIB,
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
    giga,
    total,
)
from verl_p2r.planner.memory import cache_tokens, host, memory, traffic
from verl_p2r.planner.seconds import step_time
from verl_p2r.planner.sharing import variants
from verl_p2r.planner.tokens import SHAPES, count, text_estimate, worst_media

__all__ = [
    "GIB",
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
