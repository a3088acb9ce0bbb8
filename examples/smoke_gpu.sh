#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Does it work on this GPU? The quickstart's SFT and PA-GRPO of the tiny model with vLLM on CUDA, then STEPS updates of a
# random Qwen2.5-VL-3B at the paper's shapes (16 frames of 128 x 28 x 28 pixels, 8 rollouts), with PA-GRPO and with GRPO
# on the same rewards, judged by facts, so without a judge's latency. Ends with a table and one line of JSON.
# Hardware: 1 node of 1 GPU, 80 GB, 100 GB of host memory, 40 GB of disk. No network: models and videos are made here.
# Time: not run; our estimate is 30 minutes on A100.
# Expect: not run; a ratio PA-GRPO : GRPO of at most 1.02, and responses of full length, since the 3B knows no end token.
#   OUT=outputs/smoke_gpu STEPS=8 bash examples/smoke_gpu.sh [overrides of the two 3B runs]
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/paths.bash"
OUT="$(realpath -m -- "${OUT:-outputs/smoke_gpu}")" STEPS="${STEPS:-8}" BATCH="${BATCH:-8}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false RAY_USAGE_STATS_ENABLED=0
unset VERL_PLATFORM # the quickstart's is cpu
mkdir -p "$OUT"

python "$HERE/smoke_gpu.py" check
python "$HERE/quickstart/make_data.py" "$OUT/data" --seed 1
python "$HERE/quickstart/make_model.py" "$OUT/model" --seed 1
python "$HERE/smoke_gpu.py" model "$OUT/model_3b"
python "$HERE/smoke_gpu.py" data "$OUT/data" "$OUT/data_3b"

VERL_FILE_LOGGER_PATH="$OUT/sft.jsonl" torchrun --standalone --nproc_per_node=1 -m verl.trainer.sft_trainer \
  --config-path pkg://verl_p2r.config --config-name p2r_sft \
  data.train_files="$(quoted "$OUT/data/sft_train.parquet")" \
  data.val_files="$(quoted "$OUT/data/sft_val.parquet")" \
  data.train_batch_size=32 \
  data.max_length=256 \
  model.path="$(quoted "$OUT/model")" \
  optim.lr=1.5e-3 \
  trainer.total_epochs=1000 \
  trainer.total_training_steps=100 \
  trainer.save_freq=100 \
  trainer.test_freq=100 \
  trainer.logger=[console,file] \
  trainer.resume_mode=disable \
  trainer.default_local_dir="$(quoted "$OUT/sft")"

rl() { # NAME [overrides]
  local name="$1"
  shift
  mkdir -p "$OUT/$name"
  VERL_FILE_LOGGER_PATH="$OUT/$name/metrics.jsonl" python -m verl.trainer.main_ppo \
    --config-path pkg://verl_p2r.config --config-name p2r_ppo \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.4 \
    trainer.nnodes=1 \
    trainer.n_gpus_per_node=1 \
    trainer.total_epochs=1000 \
    trainer.save_freq=-1 \
    trainer.logger=[console,file] \
    trainer.resume_mode=disable \
    trainer.default_local_dir="$(quoted "$OUT/$name/checkpoints")" \
    trainer.experiment_name="$name" \
    "$@"
}

rl tiny \
  data.train_files="$(quoted "$OUT/data/rl_train.parquet")" \
  data.val_files="$(quoted "$OUT/data/rl_val.parquet")" \
  data.train_batch_size=16 \
  data.max_prompt_length=160 \
  data.max_response_length=48 \
  actor_rollout_ref.model.path="$(quoted "$OUT/sft/global_step_100/huggingface")" \
  actor_rollout_ref.actor.ppo_mini_batch_size=16 \
  actor_rollout_ref.actor.optim.lr=3e-4 \
  actor_rollout_ref.rollout.max_model_len=208 \
  trainer.total_training_steps=4 \
  trainer.test_freq=4

for algorithm in pa_grpo grpo; do
  rl "$algorithm" \
    algorithm.adv_estimator="$algorithm" \
    data.train_files="$(quoted "$OUT/data_3b/rl.parquet")" \
    data.val_files="$(quoted "$OUT/data_3b/rl.parquet")" \
    data.train_batch_size="$BATCH" \
    data.shuffle=False \
    actor_rollout_ref.model.path="$(quoted "$OUT/model_3b")" \
    actor_rollout_ref.actor.ppo_mini_batch_size="$BATCH" \
    actor_rollout_ref.actor.fsdp_config.param_offload=True \
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=True \
    actor_rollout_ref.ref.fsdp_config.param_offload=True \
    actor_rollout_ref.rollout.max_model_len=6144 \
    trainer.total_training_steps="$STEPS" \
    trainer.val_before_train=False \
    trainer.test_freq=-1 \
    "$@"
done
python "$HERE/smoke_gpu.py" report "$OUT"
