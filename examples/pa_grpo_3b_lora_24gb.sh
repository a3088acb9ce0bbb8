#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-3B with LoRA on one card of 24 GB: pa_grpo_7b_lora_24gb.sh with the smaller model, which leaves vLLM
# room for all rows of a step.
# Hardware: 1 node of 1 GPU, 24 GB (RTX 4090, RTX 3090, L4, A10G), 64 GB of host memory, and a judge elsewhere.
# Time: not run; our estimate is 30 h on RTX 4090 for 500 updates of 8 questions.
# Expect: not run. Rank, learning rate and batch are ours; the paper trains all weights.
# Memory: LAUNCH="verl-p2r plan --gpu RTX4090 --model Qwen2.5-VL-3B --" bash examples/pa_grpo_3b_lora_24gb.sh
#   MODEL=outputs/sft_3b/checkpoints/global_step_N/huggingface bash examples/pa_grpo_3b_lora_24gb.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_3b_lora_24gb}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b_lora_24gb.sh" \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.7 \
  "$@"
