#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO on the tiny model, with verl's own RL trainer and a real vLLM server. Hardware: 2 CPU cores, 12 GB.
#   DATA=… MODEL=… OUT=… bash examples/quickstart/rl.sh [overrides]
# JUDGE=self rewards perception by the policy's own second answer instead of the rows' facts, with which it is compared.
# One override each: algorithm.adv_estimator=grpo (GRPO on the sum), algorithm.p2r.perception.enabled=false
# (process-agnostic), algorithm.p2r.separate=false (no separation).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
DATA="${DATA:-outputs/quickstart/data}" OUT="${OUT:-outputs/quickstart/rl}"
MODEL="${MODEL:-outputs/quickstart/sft/model}"
STEPS="${STEPS:-30}"
JUDGE="${JUDGE:-facts}" SELF=()
[ "$JUDGE" = self ] && SELF=(
  algorithm.p2r.judge.second_answer.think=True # a few tokens; without thinking the tiny model cannot answer
  algorithm.p2r.judge.second_answer.max_tokens=24
  "algorithm.p2r.judge.kwargs.compare_with={name: facts}"
)
mkdir -p "$OUT" && keep_metrics "$OUT"
OUT="$(cd "$OUT" && pwd)" # the trainer runs in a Ray worker, in another folder

exec ${LAUNCH:-} python -m verl.trainer.main_ppo \
  --config-path pkg://verl_p2r.config --config-name p2r_ppo_cpu \
  p2r/judge="$JUDGE" \
  "${SELF[@]}" \
  data.train_files="$(quoted "$DATA/rl_train.parquet")" \
  data.val_files="$(quoted "$DATA/rl_val.parquet")" \
  data.train_batch_size=16 \
  data.val_batch_size=256 \
  data.max_prompt_length=160 \
  data.max_response_length=48 \
  data.seed="${SEED:-1}" \
  actor_rollout_ref.model.path="$(quoted "$MODEL")" \
  actor_rollout_ref.actor.ppo_mini_batch_size=16 \
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=128 \
  actor_rollout_ref.actor.use_kl_loss=False \
  actor_rollout_ref.actor.optim.lr=3e-4 \
  actor_rollout_ref.actor.optim.lr_warmup_steps=3 \
  actor_rollout_ref.rollout.n=8 \
  actor_rollout_ref.rollout.max_model_len=208 \
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=128 \
  actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=128 \
  actor_rollout_ref.rollout.val_kwargs.do_sample=True \
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0 \
  actor_rollout_ref.rollout.val_kwargs.top_p=1.0 \
  algorithm.p2r.perception.length.minimum=1 \
  algorithm.p2r.perception.length.maximum=10 \
  algorithm.p2r.reasoning.length.minimum=1 \
  algorithm.p2r.reasoning.length.maximum=17 \
  trainer.total_epochs=1000 \
  trainer.total_training_steps="$STEPS" \
  trainer.save_freq=10 \
  trainer.test_freq="$STEPS" \
  trainer.max_actor_ckpt_to_keep=1 \
  trainer.default_local_dir="$(quoted "$OUT/checkpoints")" \
  trainer.rollout_data_dir="$(quoted "$OUT/rollouts")" \
  trainer.validation_data_dir="$(quoted "$OUT/val")" \
  trainer.project_name=quickstart \
  trainer.experiment_name="$(quoted "$(basename -- "$OUT")")" \
  +ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH="$(quoted "$OUT/metrics.jsonl")" \
  "$@"
