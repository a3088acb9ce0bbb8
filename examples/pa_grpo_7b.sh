#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-7B after its SFT, the paper's settings: 1,000 updates of 56 questions x 8 responses, at most 16
# frames of 128 x 28 x 28 pixels. The paper samples on a separate GPU; verl's colocated engine samples on all of them.
# Hardware: 1 node of 8 GPUs, 80 GB each, 500 GB of host memory, and a judge elsewhere, behind an OpenAI-compatible
#   server: vllm serve meta-llama/Llama-3.1-70B-Instruct --tensor-parallel-size 4
# Time: not run; our estimate is 36 h on A100, 14 h on H100. The paper's figure: 18 h on 8 A100 (README on BATCH).
# Expect: the paper's figures, average accuracy over 7 benchmarks: 55.6 after SFT, 58.7 after PA-GRPO. Ours: not run.
# Data: $DATA/rl/{train,val}.parquet, made by `verl-p2r-data import-release RELEASE --out $DATA`; media below $MEDIA.
#   MODEL=outputs/sft_7b/checkpoints/global_step_N/huggingface JUDGE_URLS=[http://judge:8000/v1] \
#     bash examples/pa_grpo_7b.sh [overrides]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/paths.bash"
MODEL="${MODEL:?the SFT checkpoint to start from: …/global_step_N/huggingface}"
[ -d "$MODEL" ] && MODEL="$(realpath -- "$MODEL")" # the trainer may run in another folder
DATA="$(realpath -m -- "${DATA:-data/videop2r}")" MEDIA="$(realpath -m -- "${MEDIA:-data/Video-R1-data}")"
OUT="$(realpath -m -- "${OUT:-outputs/pa_grpo_7b}")"
TRAIN="${TRAIN:-$DATA/rl/train.parquet}" VAL="${VAL:-$DATA/rl/val.parquet}"

# The judge's guards are ours, the paper has none. Learning-rate schedule and gradient norm are Video-R1's.
exec ${LAUNCH:-} python -m verl.trainer.main_ppo \
  --config-path pkg://verl_p2r.config --config-name "${CONFIG:-p2r_ppo}" \
  p2r/judge=openai \
  algorithm.p2r.judge.kwargs.model="$(quoted "${JUDGE_MODEL:-meta-llama/Llama-3.1-70B-Instruct}")" \
  algorithm.p2r.judge.kwargs.base_urls="${JUDGE_URLS:-[http://localhost:8000/v1]}" \
  algorithm.p2r.judge.guards.answer_only=False \
  algorithm.p2r.judge.guards.copied_question=False \
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
