#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Process-aware SFT of Qwen3.5-9B: sft_7b.sh with another family and its config; docs/guides/qwen3-5.md says what differs.
# Hardware: 1 node of 8 GPUs, 80 GB each, 250 GB of host memory.
# Time: not run; `verl-p2r plan` estimates 2.4 s a step on A100, 7 h for 10,000 steps; micro-batches of one row will be
#   slower than it assumes.
# Expect: not run, and not in the paper.
#   DATA=… MEDIA=… OUT=… bash examples/sft_qwen3_5_9b.sh [overrides]
set -euo pipefail
export MODEL="${MODEL:-Qwen/Qwen3.5-9B}" OUT="${OUT:-outputs/sft_qwen3_5_9b}" CONFIG="${CONFIG:-p2r_sft_qwen3_5}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/sft_7b.sh" "$@"
