#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-7B with verl's separate_async trainer: GPUs that train and GPUs that sample, at the same time, the
# paper's split of 7 + 1. Weights go over NCCL every 4 small updates of 14 questions. Samples are a little off-policy, for
# which verl's importance weights correct.
# Hardware: 1 node of 8 GPUs, 80 GB each, 500 GB of host memory, and a judge elsewhere.
# Time: not run; our estimate is 33 h on A100. The paper's figure, on the same split: 18 h.
# Expect: not run. Sampling hides behind training; it pays when responses are long or the judge is slow.
#   MODEL=… JUDGE_URLS=[http://judge:8000/v1] bash examples/pa_grpo_7b_separate_async.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_7b_separate_async}" GPUS="${GPUS:-7}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b.sh" \
  trainer.v1.trainer_mode=p2r_separate_async \
  trainer.v1.separate_async.parameter_sync_step=4 \
  actor_rollout_ref.actor.ppo_mini_batch_size=14 \
  actor_rollout_ref.rollout.nnodes=1 \
  actor_rollout_ref.rollout.n_gpus_per_node="${SAMPLING_GPUS:-1}" \
  actor_rollout_ref.rollout.checkpoint_engine.backend=nccl \
  algorithm.rollout_correction.rollout_is=token \
  "$@"
