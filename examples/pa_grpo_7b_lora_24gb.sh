#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-7B with LoRA on one card of 24 GB: pa_grpo_7b_lora_48gb.sh with smaller micro-batches and batches.
# vLLM's weights take two thirds of the card, so it samples few rows at a time.
# Hardware: 1 node of 1 GPU, 24 GB (RTX 4090, RTX 3090, L4, A10G), 100 GB of host memory, and a judge elsewhere.
# Time: not run; our estimate is 76 h on RTX 4090 for 500 updates of 8 questions.
# Expect: not run. Rank, learning rate and batch are ours; the paper trains all weights.
# Memory: LAUNCH="verl-p2r plan --gpu RTX4090 --model Qwen2.5-VL-7B --" bash examples/pa_grpo_7b_lora_24gb.sh
#   MODEL=outputs/sft_7b/checkpoints/global_step_N/huggingface bash examples/pa_grpo_7b_lora_24gb.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_7b_lora_24gb}" BATCH="${BATCH:-8}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b_lora_48gb.sh" \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=4096 \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.88 \
  actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=512 \
  "$@"
