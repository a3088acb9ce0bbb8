#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Does process-awareness pay? PA-GRPO, GRPO on the reasoning reward alone, GRPO on the sum, and no separation, from one
# SFT checkpoint of the harder task, SEEDS seeds each. Hardware: 2 CPU cores, 12 GB. About 4 minutes a run.
#   SEEDS="1 2 3" ALGORITHMS="pa_grpo grpo_sum" STEPS=12 bash examples/quickstart/compare.sh
#   SEEDS="$(seq 15)" ALGORITHMS="pa_grpo cross_0.5 cross_1" FLIPPED_VERDICTS=0.3 bash examples/quickstart/compare.sh
# cross_<λ> is PA-GRPO with algorithm.p2r.cross_credit=λ. FLIPPED_VERDICTS and FLIPPED_ANSWERS are the shares of verdicts
# and of answers that are flipped in training; such runs are in OUT/flipped_<verdicts>_<answers>. Runs with equal seeds
# see the same prompts, and the same flips for equal responses. compare.py keeps one JSON line a run in runs.jsonl.
# The held-out items are answered four times each, after training, and before it with the first seed only.
# Runs that have finished are kept, unless the task or the SFT checkpoint has changed; an interrupted one starts again.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/../paths.bash"
OUT="${OUT:-outputs/compare}" SEEDS="${SEEDS:-1 2 3}" STEPS="${STEPS:-12}" SFT_STEPS="${SFT_STEPS:-420}"
FLIPPED_VERDICTS="${FLIPPED_VERDICTS:-0}" FLIPPED_ANSWERS="${FLIPPED_ANSWERS:-0}"
mkdir -p "$OUT/logs"
OUT="$(cd "$OUT" && pwd)" LOGS="$(cd "$OUT/logs" && pwd)"
export VERL_PLATFORM=cpu

overrides() { # what algorithm $1 is, in verl's terms
  case "$1" in
    pa_grpo) ;;
    grpo_reasoning) echo algorithm.adv_estimator=grpo algorithm.p2r.perception.enabled=false ;;
    grpo_sum) echo algorithm.adv_estimator=grpo ;;
    no_separation) echo algorithm.p2r.separate=false ;;
    cross_*) echo "algorithm.p2r.cross_credit=${1#cross_}" ;;
    *) echo "unknown algorithm $1: use pa_grpo, grpo_reasoning, grpo_sum, no_separation or cross_<λ>" >&2; return 1 ;;
  esac
}
RUNS="$OUT" NOISE=()
if [ "$FLIPPED_VERDICTS" != 0 ] || [ "$FLIPPED_ANSWERS" != 0 ]; then
  RUNS="$OUT/flipped_${FLIPPED_VERDICTS}_${FLIPPED_ANSWERS}"
  NOISE=(
    reward.reward_manager.source=importlib
    reward.reward_manager.module.path="$(quoted "$HERE/noisy_rewards.py")"
    reward.reward_manager.name=NoisyRewards
    +trainer.flipped.verdicts="$FLIPPED_VERDICTS" +trainer.flipped.answers="$FLIPPED_ANSWERS"
  )
fi

log() { echo "$(date +%H:%M:%S) $*"; }
quietly() { # run "$@" with its output in log file $1; show the end of it on failure
  local file="$LOGS/$1.log"
  shift
  "$@" >>"$file" 2>&1 || { tail -n 25 "$file"; echo "failed; the whole output: $file"; exit 1; }
}

for algorithm in ${ALGORITHMS:=pa_grpo grpo_reasoning grpo_sum no_separation}; do overrides "$algorithm" >/dev/null; done
python "$HERE/make_data.py" "$OUT/data" --seed 0 --hard
python "$HERE/make_model.py" "$OUT/model" --seed 0
TASK="$(cat "$OUT/data/manifest.json" "$OUT/model/manifest.json") SFT $SFT_STEPS"
if [ "$(cat "$OUT/sft/done" 2>/dev/null)" != "$TASK" ]; then
  rm -rf "$OUT/sft"
  log "SFT"
  DATA="$OUT/data" MODEL="$OUT/model" OUT="$OUT/sft" STEPS="$SFT_STEPS" quietly sft bash "$HERE/sft.sh" trainer.seed=0
  echo "$TASK" >"$OUT/sft/done"
fi
BEFORE=True # all runs start from one checkpoint
for seed in $SEEDS; do
  for algorithm in $ALGORITHMS; do
    run="$RUNS/$algorithm/seed$seed"
    [ "$(cat "$run/done" 2>/dev/null)" = "$TASK RL $STEPS" ] && continue
    rm -rf "$run"
    log "$(basename "$RUNS")/$algorithm, seed $seed"
    # shellcheck disable=SC2046
    DATA="$OUT/data" MODEL="$OUT/sft/checkpoints/global_step_$SFT_STEPS/huggingface" OUT="$run" STEPS="$STEPS" \
      SEED="$seed" quietly "$(basename "$RUNS")-$algorithm-$seed" bash "$HERE/rl.sh" \
      actor_rollout_ref.rollout.seed="$seed" trainer.save_freq=-1 trainer.rollout_data_dir=null \
      actor_rollout_ref.rollout.val_kwargs.n=4 trainer.val_before_train="$BEFORE" \
      $(overrides "$algorithm") "${NOISE[@]}"
    echo "$TASK RL $STEPS" >"$run/done"
    python "$HERE/compare.py" "$RUNS" >"$LOGS/compare.log"
  done
  BEFORE=False
done
python "$HERE/compare.py" "$RUNS"
