#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Process-aware SFT of Qwen2.5-VL-3B with LoRA on one card of 24 GB or more: sft_7b_lora_24gb.sh with the smaller model.
# Hardware: 1 node of 1 GPU, 24 GB (RTX 4090, RTX 3090, L4, A10G), 64 GB of host memory.
# Time: not run; our estimate is 70 h on RTX 4090 for all of CoT-162K.
# Expect: not run. Rank and learning rate are ours; the paper trains all weights.
# Memory: LAUNCH="verl-p2r plan --gpu RTX4090 --" bash examples/sft_3b_lora_24gb.sh
#   DATA=… MEDIA=… OUT=… bash examples/sft_3b_lora_24gb.sh [overrides]
set -euo pipefail
export MODEL="${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}" OUT="${OUT:-outputs/sft_3b_lora_24gb}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/sft_7b_lora_24gb.sh" "$@"
