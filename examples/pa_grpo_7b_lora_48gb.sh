#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-7B with LoRA on one card of 48 GB: pa_grpo_3b_lora_48gb.sh with the larger model. Its float32
# weights stay in host memory, and FSDP2 sends them to the GPU layer by layer, so that vLLM's weights fit next to it.
# Hardware: 1 node of 1 GPU, 48 GB (L40S, RTX 6000 Ada, A40), 100 GB of host memory, and a judge elsewhere.
# Time: not run; our estimate is 50 h on L40S for 500 updates of 16 questions.
# Expect: not run. Rank, learning rate and batch are ours; the paper trains all weights.
# Memory: LAUNCH="verl-p2r plan --gpu L40S --model Qwen2.5-VL-7B --" bash examples/pa_grpo_7b_lora_48gb.sh
#   MODEL=outputs/sft_7b/checkpoints/global_step_N/huggingface bash examples/pa_grpo_7b_lora_48gb.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_7b_lora_48gb}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_3b_lora_48gb.sh" \
  actor_rollout_ref.actor.strategy=fsdp2 \
  actor_rollout_ref.actor.fsdp_config.strategy=fsdp2 \
  actor_rollout_ref.actor.fsdp_config.param_offload=False \
  actor_rollout_ref.actor.fsdp_config.offload_policy=True \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.7 \
  "$@"
