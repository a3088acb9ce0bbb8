#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Process-aware SFT of Qwen3-VL-8B: sft_7b.sh with another family; its patches of 16 pixels are read off its processor.
# Hardware: 1 node of 8 GPUs, 80 GB each, 250 GB of host memory.
# Time: not run; our estimate is 6 to 10 h on A100.
# Expect: not run, and not in the paper.
#   DATA=… MEDIA=… OUT=… bash examples/sft_qwen3_vl_8b.sh [overrides]
set -euo pipefail
export MODEL="${MODEL:-Qwen/Qwen3-VL-8B-Instruct}" OUT="${OUT:-outputs/sft_qwen3_vl_8b}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/sft_7b.sh" "$@"
