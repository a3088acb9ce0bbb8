#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-7B with the judge in the same Ray cluster: verl serves it on separate GPUs, 7 + 1.
# A better judge on more of them: GPUS=4 JUDGE_GPUS=4 JUDGE_MODEL=meta-llama/Llama-3.1-70B-Instruct; on a separate node:
# a second node in the Ray cluster and GPUS=8 JUDGE_GPUS=8. Beside the judge this is the command of pa_grpo_7b.sh.
# Hardware: 1 node of 8 GPUs, 80 GB each, 500 GB of host memory. No other server is needed.
# Time: not run; our estimate is 41 h on A100 with 7 + 1 GPUs, 70 h with 4 + 4.
# Expect: the paper's figures: Llama-3.1-8B agrees with people on 82 % of 200 samples, 70B on 88 %, Claude 3.7 on 95 %.
#   Ours: not run.
#   MODEL=outputs/sft_7b/checkpoints/global_step_N/huggingface bash examples/pa_grpo_7b_judge_in_cluster.sh [overrides]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/paths.bash"
MODEL="${MODEL:?the SFT checkpoint to start from: …/global_step_N/huggingface}"
[ -d "$MODEL" ] && MODEL="$(realpath -- "$MODEL")" # the trainer may run in another folder
DATA="$(realpath -m -- "${DATA:-data/videop2r}")" MEDIA="$(realpath -m -- "${MEDIA:-data/Video-R1-data}")"
OUT="$(realpath -m -- "${OUT:-outputs/pa_grpo_7b_judge_in_cluster}")"
TRAIN="${TRAIN:-$DATA/rl/train.parquet}" VAL="${VAL:-$DATA/rl/val.parquet}"

# The judge's guards are ours, the paper has none. Learning-rate schedule and gradient norm are Video-R1's.
exec ${LAUNCH:-} python -m verl.trainer.main_ppo \
  --config-path pkg://verl_p2r.config --config-name p2r_ppo \
  p2r/judge=verl \
  algorithm.p2r.judge.guards.answer_only=False \
  algorithm.p2r.judge.guards.copied_question=False \
  reward.reward_model.model_path="$(quoted "${JUDGE_MODEL:-meta-llama/Llama-3.1-8B-Instruct}")" \
  reward.reward_model.nnodes=1 \
  reward.reward_model.n_gpus_per_node="${JUDGE_GPUS:-1}" \
  reward.reward_model.rollout.tensor_model_parallel_size="${JUDGE_GPUS:-1}" \
  reward.reward_model.rollout.gpu_memory_utilization=0.85 \
  reward.reward_model.rollout.max_model_len=8192 \
  data.train_files="$(files "$TRAIN")" \
  data.val_files="$(files "$VAL")" \
  data.train_batch_size="${BATCH:-56}" \
  data.p2r.media_root="$(quoted "$MEDIA")" \
  data.p2r.media_cache.directory="$(quoted "${CACHE:-}")" \
  actor_rollout_ref.model.path="$(quoted "$MODEL")" \
  actor_rollout_ref.actor.ppo_mini_batch_size="${BATCH:-56}" \
  actor_rollout_ref.actor.optim.lr_scheduler_type=cosine \
  actor_rollout_ref.actor.optim.clip_grad=5.0 \
  actor_rollout_ref.actor.fsdp_config.param_offload=True \
  actor_rollout_ref.actor.fsdp_config.optimizer_offload=True \
  actor_rollout_ref.ref.fsdp_config.param_offload=True \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \
  actor_rollout_ref.rollout.max_model_len=6144 \
  trainer.nnodes="${NNODES:-1}" \
  trainer.n_gpus_per_node="${GPUS:-7}" \
  trainer.total_training_steps="${STEPS:-1000}" \
  trainer.save_freq=100 \
  trainer.test_freq=100 \
  trainer.max_actor_ckpt_to_keep=2 \
  trainer.logger="${LOGGER:-[console,tensorboard]}" \
  trainer.default_local_dir="$(quoted "$OUT/checkpoints")" \
  trainer.validation_data_dir="$(quoted "$OUT/validation")" \
  trainer.experiment_name="$(quoted "$(basename -- "$OUT")")" \
  "$@"
