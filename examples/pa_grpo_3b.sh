#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-3B after its SFT: pa_grpo_7b.sh with the smaller model.
# Hardware: 1 node of 8 GPUs, 80 GB each, 500 GB of host memory, and a judge elsewhere.
# Time: not run; our estimate is 22 h on A100, 9 h on H100.
# Expect: the paper's figure, average accuracy over 7 benchmarks: 53.3. Ours: not run.
#   MODEL=outputs/sft_3b/checkpoints/global_step_N/huggingface JUDGE_URLS=[http://judge:8000/v1] \
#     bash examples/pa_grpo_3b.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_3b}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b.sh" "$@"
