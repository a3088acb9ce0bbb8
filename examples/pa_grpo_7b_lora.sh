#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-7B with LoRA on one GPU: pa_grpo_7b.sh with adapters of rank 64 on the language model and smaller
# batches. The model without its adapters is also the reference of the KL term, at no memory. Weights stay float32, in
# which small steps are not rounded away, and lie in host memory while vLLM samples.
# Hardware: 1 node of 1 GPU, 80 GB each, 200 GB of host memory, and a judge elsewhere.
# Time: not run; our estimate is 33 h on A100 for 500 updates of 16 questions.
# Expect: not run. Rank, learning rate and batch are ours; the paper trains all weights.
# The checkpoint holds shards: python -m verl.model_merger merge --backend fsdp --local_dir …/actor --target_dir …
#   MODEL=outputs/sft_7b/checkpoints/global_step_N/huggingface bash examples/pa_grpo_7b_lora.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_7b_lora}" GPUS="${GPUS:-1}" BATCH="${BATCH:-16}" STEPS="${STEPS:-500}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b.sh" \
  actor_rollout_ref.model.lora_rank=64 \
  actor_rollout_ref.model.lora_alpha=64 \
  actor_rollout_ref.model.exclude_modules=".*visual.*" \
  actor_rollout_ref.actor.optim.lr=1e-5 \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192 \
  actor_rollout_ref.actor.fsdp_config.param_offload=True \
  actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra] \
  actor_rollout_ref.rollout.load_format=safetensors \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.45 \
  "$@"
