# SPDX-License-Identifier: Apache-2.0
"""Scores of the paper's seven benchmarks: pure functions of replies, used by `verl-p2r-eval` and by validation.

records with replies → items (strict and lenient) → one figure a benchmark, by a named protocol
"""

from verl_p2r.evaluation.comparison import compare
from verl_p2r.evaluation.items import score_response, validation_scores
from verl_p2r.evaluation.protocol import BENCHMARKS, Protocol, protocol_names
from verl_p2r.evaluation.relative_accuracy import mean_relative_accuracy
from verl_p2r.evaluation.summary import score

__all__ = [
    "BENCHMARKS",
    "Protocol",
    "compare",
    "mean_relative_accuracy",
    "protocol_names",
    "score",
    "score_response",
    "validation_scores",
]
