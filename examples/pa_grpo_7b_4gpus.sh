#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-7B on 4 GPUs: pa_grpo_7b.sh with parameters and optimizer in host memory while vLLM samples.
# Hardware: 1 node of 4 GPUs, 80 GB each, 400 GB of host memory, and a judge elsewhere.
# Time: not run; our estimate is 70 h on A100, 27 h on H100.
# Expect: not run; the same updates as pa_grpo_7b.sh, so the same accuracy.
#   MODEL=… JUDGE_URLS=[http://judge:8000/v1] bash examples/pa_grpo_7b_4gpus.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_7b_4gpus}" GPUS="${GPUS:-4}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b.sh" \
  actor_rollout_ref.actor.fsdp_config.param_offload=True \
  actor_rollout_ref.actor.fsdp_config.optimizer_offload=True \
  "$@"
