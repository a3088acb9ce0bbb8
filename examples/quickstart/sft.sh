#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Process-aware SFT of the tiny model, with verl's own SFT trainer. Hardware: 2 CPU cores, 5 GB.
#   DATA=… MODEL=… OUT=… bash examples/quickstart/sft.sh [overrides]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
DATA="${DATA:-outputs/quickstart/data}" MODEL="${MODEL:-outputs/quickstart/model}" OUT="${OUT:-outputs/quickstart/sft}"
STEPS="${STEPS:-420}"
mkdir -p "$OUT" && keep_metrics "$OUT"

export VERL_FILE_LOGGER_PATH="$OUT/metrics.jsonl"
exec ${LAUNCH:-} torchrun --standalone --nproc_per_node=1 -m verl.trainer.sft_trainer \
  --config-path pkg://verl_p2r.config --config-name p2r_sft_cpu \
  data.train_files="$(quoted "$DATA/sft_train.parquet")" \
  data.val_files="$(quoted "$DATA/sft_val.parquet")" \
  data.train_batch_size=32 \
  data.micro_batch_size_per_gpu=32 \
  data.max_length=256 \
  data.num_workers=1 \
  model.path="$(quoted "$MODEL")" \
  optim.lr=1.5e-3 \
  trainer.total_epochs=1000 \
  trainer.total_training_steps="$STEPS" \
  trainer.save_freq="$((STEPS < 105 ? STEPS : 105))" \
  trainer.test_freq="$((STEPS < 105 ? STEPS : 105))" \
  trainer.max_ckpt_to_keep=1 \
  trainer.default_local_dir="$(quoted "$OUT/checkpoints")" \
  trainer.project_name=quickstart \
  trainer.experiment_name=sft \
  "$@"
