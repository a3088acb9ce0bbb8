#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-7B without a judge: the policy answers each question a second time from its own observation, without
# the video, on the GPUs that sample. Except for the judge this is the command of pa_grpo_7b.sh.
# Hardware: 1 node of 8 GPUs, 80 GB each, 500 GB of host memory. No other server is needed.
# Time: not run; our estimate is 36 h on A100, 14 h on H100. Second answers take 7 % of the sampling time.
# Expect: not run, and not in the paper. Watch p2r/judge/share_of_sampling, and p2r/judge/agreement if you compare it with a
#   judge: algorithm.p2r.judge.kwargs.compare_with="{name: openai, kwargs: {model: …, base_urls: […]}}"
#   MODEL=outputs/sft_7b/checkpoints/global_step_N/huggingface bash examples/pa_grpo_7b_self.sh [overrides]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/paths.bash"
MODEL="${MODEL:?the SFT checkpoint to start from: …/global_step_N/huggingface}"
[ -d "$MODEL" ] && MODEL="$(realpath -- "$MODEL")" # the trainer may run in another folder
DATA="$(realpath -m -- "${DATA:-data/videop2r}")" MEDIA="$(realpath -m -- "${MEDIA:-data/Video-R1-data}")"
OUT="$(realpath -m -- "${OUT:-outputs/pa_grpo_7b_self}")"
TRAIN="${TRAIN:-$DATA/rl/train.parquet}" VAL="${VAL:-$DATA/rl/val.parquet}"

# The second answer and its guards are ours. Learning-rate schedule and gradient norm are Video-R1's.
exec ${LAUNCH:-} python -m verl.trainer.main_ppo \
  --config-path pkg://verl_p2r.config --config-name p2r_ppo \
  p2r/judge=self \
  data.train_files="$(files "$TRAIN")" \
  data.val_files="$(files "$VAL")" \
  data.train_batch_size="${BATCH:-56}" \
  data.p2r.media_root="$(quoted "$MEDIA")" \
  data.p2r.media_cache.directory="$(quoted "${CACHE:-}")" \
  actor_rollout_ref.model.path="$(quoted "$MODEL")" \
  actor_rollout_ref.actor.ppo_mini_batch_size="${BATCH:-56}" \
  actor_rollout_ref.actor.optim.lr_scheduler_type=cosine \
  actor_rollout_ref.actor.optim.clip_grad=5.0 \
  actor_rollout_ref.ref.fsdp_config.param_offload=True \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \
  actor_rollout_ref.rollout.max_model_len=6144 \
  trainer.nnodes="${NNODES:-1}" \
  trainer.n_gpus_per_node="${GPUS:-8}" \
  trainer.total_training_steps="${STEPS:-1000}" \
  trainer.save_freq=100 \
  trainer.test_freq=100 \
  trainer.max_actor_ckpt_to_keep=2 \
  trainer.logger="${LOGGER:-[console,tensorboard]}" \
  trainer.default_local_dir="$(quoted "$OUT/checkpoints")" \
  trainer.validation_data_dir="$(quoted "$OUT/validation")" \
  trainer.experiment_name="$(quoted "$(basename -- "$OUT")")" \
  "$@"
