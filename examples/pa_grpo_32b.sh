#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-32B: pa_grpo_7b.sh on two nodes, each sequence cut over 4 GPUs (Ulysses), vLLM's weights too.
# Hardware: 2 nodes of 8 GPUs, 80 GB each, 1000 GB of host memory a node, and a judge elsewhere. A Ray cluster as for
#   pa_grpo_7b_multinode.sh.
# Time: not run; our estimate is 80 h on 16 A100, 31 h on 16 H100.
# Expect: not run, and not in the paper. Without an SFT checkpoint of this size it is RL only.
#   MODEL=… JUDGE_URLS=[http://judge:8000/v1] bash examples/pa_grpo_32b.sh [overrides]
set -euo pipefail
export MODEL="${MODEL:-Qwen/Qwen2.5-VL-32B-Instruct}" OUT="${OUT:-outputs/pa_grpo_32b}" NNODES="${NNODES:-2}"
export RAY_ADDRESS="${RAY_ADDRESS:-auto}" # join that cluster, or fail; do not start one on this node alone

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b.sh" \
  actor_rollout_ref.actor.ulysses_sequence_parallel_size=4 \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192 \
  actor_rollout_ref.actor.fsdp_config.param_offload=True \
  actor_rollout_ref.actor.fsdp_config.optimizer_offload=True \
  actor_rollout_ref.rollout.tensor_model_parallel_size=4 \
  "$@"
