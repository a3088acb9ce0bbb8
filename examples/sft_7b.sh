#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Process-aware SFT of Qwen2.5-VL-7B on VideoP2R-CoT-162K, the paper's settings: one epoch, 8 GPUs x 1 row x 2 accumulated.
# Hardware: 1 node of 8 GPUs, 80 GB each, 250 GB of host memory.
# Time: not run; our estimate is 6 to 10 h on A100 (examples/README.md says how it is made).
# Expect: the paper's figures, average accuracy over 7 benchmarks: 52.9 before, 55.6 after. Ours: not run.
# Data: $DATA/sft/{train,val}.parquet, made by `verl-p2r-data import-release RELEASE --out $DATA`; media below $MEDIA.
#   Several nodes: examples/cluster sets NNODES and HEAD; 16 rows divide over 2 nodes, for more change the batch.
#   The checkpoint for RL is $OUT/checkpoints/global_step_N/huggingface.
#   DATA=… MEDIA=… OUT=… bash examples/sft_7b.sh [overrides]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/paths.bash"
DATA="$(realpath -m -- "${DATA:-data/videop2r}")" MEDIA="$(realpath -m -- "${MEDIA:-data/Video-R1-data}")"
OUT="$(realpath -m -- "${OUT:-outputs/sft_7b}")" MODEL="${MODEL:-Qwen/Qwen2.5-VL-7B-Instruct}"
GPUS="${GPUS:-8}" NNODES="${NNODES:-1}"
nodes=(--standalone)
if [ "$NNODES" != 1 ]; then
  nodes=(--nnodes="$NNODES" --rdzv_backend=c10d --rdzv_endpoint="${HEAD:?the first node}:${SFT_PORT:-29500}" --rdzv_id=p2r)
fi

# Learning rate and gradient norm are Video-R1's: the paper does not say, and verl's default of 1e-3 is far too high for 7B.
exec ${LAUNCH:-} torchrun "${nodes[@]}" --nproc_per_node="$GPUS" -m verl.trainer.sft_trainer \
  --config-path pkg://verl_p2r.config --config-name "${CONFIG:-p2r_sft}" \
  data.train_files="$(quoted "$DATA/sft/train.parquet")" \
  data.val_files="$(quoted "$DATA/sft/val.parquet")" \
  data.train_batch_size=16 \
  data.p2r.media_root="$(quoted "$MEDIA")" \
  data.p2r.media_cache.directory="$(quoted "${CACHE:-}")" \
  model.path="$(quoted "$MODEL")" \
  optim.lr=1e-6 \
  optim.lr_scheduler_type=cosine \
  optim.clip_grad=5.0 \
  trainer.nnodes="$NNODES" \
  trainer.n_gpus_per_node="$GPUS" \
  trainer.save_freq=1000 \
  trainer.test_freq=1000 \
  trainer.max_ckpt_to_keep=2 \
  trainer.logger="${LOGGER:-[console,tensorboard]}" \
  trainer.default_local_dir="$(quoted "$OUT/checkpoints")" \
  trainer.experiment_name="$(quoted "$(basename -- "$OUT")")" \
  "$@"
