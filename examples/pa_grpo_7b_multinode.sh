#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-7B on NNODES nodes of 8 GPUs: pa_grpo_7b.sh on a Ray cluster that is up already.
# Run it on the head node; the other nodes have joined with `ray start --address=HEAD:6379`, and all see $DATA, $MEDIA,
# $CACHE and $OUT under the same paths. 56 x 8 responses divide over 2, 4 and 8 nodes; for others change BATCH.
# Hardware: 2 nodes of 8 GPUs, 80 GB each, 500 GB of host memory a node, and a judge elsewhere.
# Time: not run; our estimate is 22 h on 16 A100, 14 h on 32: beyond that sampling and weight sync are what is left.
# Expect: not run; the same updates as pa_grpo_7b.sh, so the same accuracy.
#   NNODES=2 MODEL=… JUDGE_URLS=[http://judge:8000/v1] bash examples/pa_grpo_7b_multinode.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_7b_multinode}" NNODES="${NNODES:-2}"
export RAY_ADDRESS="${RAY_ADDRESS:-auto}" # join that cluster, or fail; do not start one on this node alone

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b.sh" "$@"
