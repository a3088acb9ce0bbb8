#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen3-VL-8B after its SFT: pa_grpo_7b.sh with another family, whose patches have 16 pixels.
# Hardware: 1 node of 8 GPUs, 80 GB each, 500 GB of host memory, and a judge elsewhere.
# Time: not run; our estimate is 36 h on A100, 14 h on H100.
# Expect: not run, and not in the paper.
#   MODEL=outputs/sft_qwen3_vl_8b/checkpoints/global_step_N/huggingface bash examples/pa_grpo_qwen3_vl_8b.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_qwen3_vl_8b}"

# verl's default of 14 pixels would win over what the processor says.
exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b.sh" \
  data.image_patch_size=16 \
  "$@"
