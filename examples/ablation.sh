#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One row of the paper's table 2: sft_7b.sh or pa_grpo_7b.sh with one switch.
#   grpo              no R_P: GRPO on the reasoning reward over all tokens, the process-agnostic baseline; asks no judge
#   no_reasoning      no R_R
#   no_length         no R_len
#   no_separation     R_P + R_R over all tokens
#   rl_only           PA-GRPO from the instruction-tuned model, without SFT
#   sft_only          SFT, nothing behind it
#   agnostic_sft      SFT on the reasoning alone, the observations left out
# Hardware: as sft_7b.sh or pa_grpo_7b.sh; for 3B set MODEL.
# Time: not run; as sft_7b.sh or pa_grpo_7b.sh. The paper's figure for grpo: 16.5 h on 8 A100, 1.5 h less than PA-GRPO.
# Expect: the paper's figures, average accuracy over 7 benchmarks: grpo 56.4, no_separation 57.4, sft_only 55.6, against
#   58.7 for PA-GRPO. Ours: not run.
#   ABLATION=no_length MODEL=outputs/sft_7b/checkpoints/global_step_N/huggingface bash examples/ablation.sh [overrides]
set -euo pipefail
ABLATION="${ABLATION:?one of grpo, no_reasoning, no_length, no_separation, rl_only, sft_only, agnostic_sft}"
export OUT="${OUT:-outputs/ablation_$ABLATION}"

case "$ABLATION" in
  grpo) run=pa_grpo_7b switch=(algorithm.adv_estimator=grpo algorithm.p2r.perception.enabled=False) ;;
  no_reasoning) run=pa_grpo_7b switch=(algorithm.p2r.reasoning.enabled=False) ;;
  no_length) run=pa_grpo_7b switch=(algorithm.p2r.length_reward=False) ;;
  no_separation) run=pa_grpo_7b switch=(algorithm.p2r.separate=False) ;;
  rl_only) run=pa_grpo_7b switch=() && export MODEL="${MODEL:-Qwen/Qwen2.5-VL-7B-Instruct}" ;;
  sft_only) run=sft_7b switch=() ;;
  agnostic_sft) run=sft_7b switch=(data.p2r.process_aware=False) ;;
  *) echo "ABLATION=$ABLATION is unknown: see the head of $0" >&2 && exit 2 ;;
esac
exec bash "$(dirname "${BASH_SOURCE[0]}")/$run.sh" "${switch[@]}" "$@"
