#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Does process-awareness pay? PA-GRPO, GRPO on the reasoning reward alone, GRPO on the sum, and no separation, from one
# SFT checkpoint of the harder task, SEEDS seeds each. Hardware: 2 CPU cores, 12 GB. About 4 minutes a run.
#   SEEDS="1 2 3" ALGORITHMS="pa_grpo grpo_sum" STEPS=12 bash examples/quickstart/compare.sh
# Runs that have finished are kept, unless the task or the SFT checkpoint has changed; an interrupted one starts again.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
OUT="${OUT:-outputs/compare}" SEEDS="${SEEDS:-1 2 3}" STEPS="${STEPS:-12}" SFT_STEPS="${SFT_STEPS:-420}"
mkdir -p "$OUT/logs"
OUT="$(cd "$OUT" && pwd)" LOGS="$(cd "$OUT/logs" && pwd)"
export VERL_PLATFORM=cpu

declare -A OVERRIDES=(
  [pa_grpo]=""
  [grpo_reasoning]="algorithm.adv_estimator=grpo algorithm.p2r.perception.enabled=false"
  [grpo_sum]="algorithm.adv_estimator=grpo"
  [no_separation]="algorithm.p2r.separate=false"
)

log() { echo "$(date +%H:%M:%S) $*"; }
quietly() { # run "$@" with its output in log file $1; show the end of it on failure
  local file="$LOGS/$1.log"
  shift
  "$@" >>"$file" 2>&1 || { tail -n 25 "$file"; echo "failed; the whole output: $file"; exit 1; }
}

python "$HERE/make_data.py" "$OUT/data" --seed 0 --hard
python "$HERE/make_model.py" "$OUT/model" --seed 0
TASK="$(cat "$OUT/data/manifest.json" "$OUT/model/manifest.json") SFT $SFT_STEPS"
if [ "$(cat "$OUT/sft/done" 2>/dev/null)" != "$TASK" ]; then
  rm -rf "$OUT/sft"
  log "SFT"
  DATA="$OUT/data" MODEL="$OUT/model" OUT="$OUT/sft" STEPS="$SFT_STEPS" quietly sft bash "$HERE/sft.sh" trainer.seed=0
  echo "$TASK" >"$OUT/sft/done"
fi
for seed in $SEEDS; do
  for algorithm in ${ALGORITHMS:-pa_grpo grpo_reasoning grpo_sum no_separation}; do
    run="$OUT/$algorithm/seed$seed"
    [ "$(cat "$run/done" 2>/dev/null)" = "$TASK RL $STEPS" ] && continue
    rm -rf "$run"
    log "$algorithm, seed $seed"
    # shellcheck disable=SC2086
    DATA="$OUT/data" MODEL="$OUT/sft/checkpoints/global_step_$SFT_STEPS/huggingface" OUT="$run" STEPS="$STEPS" \
      SEED="$seed" quietly "$algorithm-$seed" bash "$HERE/rl.sh" \
      actor_rollout_ref.rollout.seed="$seed" trainer.save_freq="$STEPS" ${OVERRIDES[$algorithm]}
    echo "$TASK RL $STEPS" >"$run/done"
  done
done
python "$HERE/compare.py" "$OUT"
