# SPDX-License-Identifier: Apache-2.0
"""verl_p2r: process-aware reinforcement fine-tuning (VideoP2R, arXiv 2511.11113) as a plugin for verl.

This package root imports nothing: the method lives in its modules, the bindings to verl in `verl_p2r.plugin`.
"""

__version__ = "0.1.0"
