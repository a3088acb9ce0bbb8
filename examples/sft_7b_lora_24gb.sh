#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Process-aware SFT of Qwen2.5-VL-7B with LoRA on one card of 24 GB or more: sft_7b.sh with adapters of rank 64 on the
# language model. Its float32 weights stay in host memory, and FSDP2 sends them to the GPU layer by layer.
# Hardware: 1 node of 1 GPU, 24 GB (RTX 4090, RTX 3090, L4, A10G), 100 GB of host memory.
# Time: not run; our estimate is 149 h on RTX 4090 for all of CoT-162K.
# Expect: not run. Rank and learning rate are ours; the paper trains all weights.
# The checkpoint holds shards: python -m verl.model_merger merge --backend fsdp --local_dir … --target_dir …
# Memory: LAUNCH="verl-p2r plan --gpu RTX4090 --" bash examples/sft_7b_lora_24gb.sh
#   DATA=… MEDIA=… OUT=… bash examples/sft_7b_lora_24gb.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/sft_7b_lora_24gb}" GPUS="${GPUS:-1}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/sft_7b.sh" \
  data.max_length=3072 \
  data.max_token_len_per_gpu=4096 \
  model.lora_rank=64 \
  model.lora_alpha=64 \
  model.exclude_modules=".*visual.*" \
  engine.strategy=fsdp2 \
  engine.offload_policy=True \
  optim.lr=1e-5 \
  checkpoint.save_contents=[model,optimizer,extra] \
  "$@"
