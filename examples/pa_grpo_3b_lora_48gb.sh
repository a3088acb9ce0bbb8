#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-3B with LoRA on one card of 48 GB: pa_grpo_7b_lora.sh with prompts as short as the paper's training
# media allow, and validation on as many frames as training. The paper validates on 32 frames of twice the pixels.
# Hardware: 1 node of 1 GPU, 48 GB (L40S, RTX 6000 Ada, A40), 80 GB of host memory, and a judge elsewhere.
# Time: not run; our estimate is 18 h on L40S for 500 updates of 16 questions.
# Expect: not run. Rank, learning rate and batch are ours; the paper trains all weights.
# Memory: LAUNCH="verl-p2r plan --gpu L40S --model Qwen2.5-VL-3B --" bash examples/pa_grpo_3b_lora_48gb.sh
#   MODEL=outputs/sft_3b/checkpoints/global_step_N/huggingface bash examples/pa_grpo_3b_lora_48gb.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_3b_lora_48gb}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b_lora.sh" \
  data.max_prompt_length=2048 \
  data.p2r.media.val.max_frames=16 \
  data.p2r.media.val.video_max_pixels=100352 \
  actor_rollout_ref.rollout.max_model_len=3072 \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
  "$@"
