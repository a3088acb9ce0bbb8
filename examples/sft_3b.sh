#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Process-aware SFT of Qwen2.5-VL-3B: sft_7b.sh with the smaller model.
# Hardware: 1 node of 8 GPUs, 80 GB each (40 GB should do), 250 GB of host memory.
# Time: not run; our estimate is 3 to 5 h on A100.
# Expect: not run. The paper reports no 3B after SFT alone; after PA-GRPO it has 53.3 (its figure).
#   DATA=… MEDIA=… OUT=… bash examples/sft_3b.sh [overrides]
set -euo pipefail
export MODEL="${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}" OUT="${OUT:-outputs/sft_3b}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/sft_7b.sh" "$@"
