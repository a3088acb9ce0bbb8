# SPDX-License-Identifier: Apache-2.0
# What the quickstart's processes need on a CPU; sourced by the scripts in this folder.
source "$(dirname "${BASH_SOURCE[0]}")/../paths.bash"
export VERL_PLATFORM=cpu
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # trainer, vLLM server and data workers share the cores
export RAY_USAGE_STATS_ENABLED=0 RAY_DEDUP_LOGS=0
unset CUDA_VISIBLE_DEVICES # Ray checks the logical GPU of the CPU platform against it

# verl's file logger overwrites its file: keep what an interrupted run wrote, for the report to merge.
keep_metrics() {
  local k=1
  [ -s "$1/metrics.jsonl" ] || return 0
  while [ -e "$1/metrics.$k.jsonl" ]; do k=$((k + 1)); done
  mv "$1/metrics.jsonl" "$1/metrics.$k.jsonl"
}
