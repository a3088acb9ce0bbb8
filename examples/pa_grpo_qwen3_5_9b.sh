#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen3.5-9B after its SFT: pa_grpo_7b.sh with another family and its config; docs/guides/qwen3-5.md says what
# differs.
# Hardware: 1 node of 8 GPUs, 80 GB each, 500 GB of host memory, and a judge elsewhere.
# Time: not run; `verl-p2r plan` estimates 40 h on A100, but micro-batches of one row will be slower than it assumes.
# Expect: not run, and not in the paper.
#   MODEL=outputs/sft_qwen3_5_9b/checkpoints/global_step_N/huggingface bash examples/pa_grpo_qwen3_5_9b.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_qwen3_5_9b}" CONFIG="${CONFIG:-p2r_ppo_qwen3_5}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b.sh" "$@"
