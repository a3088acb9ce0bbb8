#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What each node of a cluster runs: it starts Ray and, on the head, any RL script of examples/; or torchrun, for an SFT
# script. slurm.sbatch and skypilot.yaml call it on all their nodes; by hand see ray_by_hand.md.
#   NODE_RANK=0 HEAD=10.0.0.1 NNODES=2 SCRIPT=examples/pa_grpo_7b_multinode.sh MODEL=… \
#     bash examples/cluster/node.sh [overrides]
# The same variables on all nodes, but NODE_RANK: 0 is the head, whose address is HEAD; NNODES nodes train. With
# JUDGE_HOST set, one node more, of rank NNODES, serves JUDGE_MODEL with vLLM and trains nothing. RAY_ARGS: more for
# `ray start`. RAY_TMPDIR: Ray's folder on each node; not /tmp, where later runs look for a cluster, also a killed one.
# Ray's workers inherit this environment on their node: keys belong here, and not into overrides, which verl prints.
set -euo pipefail
: "${SCRIPT:?the script to run: examples/….sh}" "${HEAD:?the address of the first node}" "${NODE_RANK:?0 on the head}"
export HEAD NNODES="${NNODES:?the number of nodes that train}"
export RAY_TMPDIR="${RAY_TMPDIR:-/tmp/p2r_$(id -u)}"
mkdir -p "$RAY_TMPDIR"
RAY_PORT="${RAY_PORT:-6379}" JUDGE_PORT="${JUDGE_PORT:-8000}" PATIENCE="${PATIENCE:-1800}" # s, for the others to come
export VERL_USE_EXTERNAL_MODULES="${VERL_USE_EXTERNAL_MODULES:-verl_p2r.plugin}" # an error in our plugin is then loud
export VERL_P2R_MEDIA_TIMEOUT="${VERL_P2R_MEDIA_TIMEOUT:-60}"                     # s a file; more on a slow shared disk
export RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # once the script has ended nothing is left to wait for
# Ray (2.60) asks for a token where it finds one, but `ray status` does not look for it: say it for both. All nodes
# need the same token, or RAY_AUTH_MODE=disabled.
if [ -n "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ] || [ -e "$HOME/.ray/auth_token" ]; then
  export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
fi

case "$(basename "$SCRIPT") ${ABLATION:-}" in
  sft_* | *" sft_only" | *" agnostic_sft") # torchrun on every node, and no Ray
    exec bash "$SCRIPT" "$@"
    ;;
esac

child="" # killed, rather than `ray stop`, which would take along the Ray of others on this node, such as SkyPilot's
end() { # a `ray start` whose head is gone does not end at SIGTERM
  [ -n "$child" ] && kill "$child" 2>/dev/null || return 0
  for _ in 1 2 3 4 5; do
    kill -0 "$child" 2>/dev/null || return 0
    sleep 1
  done
  pkill -KILL -P "$child" 2>/dev/null
  kill -KILL "$child" 2>/dev/null || true
}
trap end EXIT
trap 'exit 143' TERM INT
up() { ray status --address="$HEAD:$RAY_PORT" >/dev/null 2>&1; }
await() { # WHAT COMMAND…: until the command succeeds, or PATIENCE is over
  local what="$1" start="$SECONDS"
  shift
  until "$@"; do
    if [ -n "$child" ] && ! kill -0 "$child" 2>/dev/null; then
      echo "node $NODE_RANK: its server ended: see above" >&2 && exit 1
    fi
    if [ "$((SECONDS - start))" -ge "$PATIENCE" ]; then
      echo "node $NODE_RANK: $what did not come within $PATIENCE s" >&2 && exit 1
    fi
    sleep 5
  done
}
follow_head() { # until the head is gone: not seen three times in a row
  local missed=0
  while [ "$missed" -lt 3 ]; do
    sleep 10
    if ! up; then
      missed="$((missed + 1))"
    elif kill -0 "$child" 2>/dev/null; then
      missed=0
    elif ! up; then # it ended with the head, between the two looks
      missed="$((missed + 1))"
    else
      echo "node $NODE_RANK: its server ended: see above" >&2 && exit 1
    fi
  done
}
joined() { # have all nodes that train?
  python -c 'import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))' "$HEAD:$RAY_PORT" "$NNODES"
}

if [ "$NODE_RANK" -eq 0 ]; then
  # shellcheck disable=SC2086
  ray start --head --node-ip-address="$HEAD" --port="$RAY_PORT" --block ${RAY_ARGS:-} &
  child="$!"
  await "Ray" up
  await "a Ray cluster of $NNODES nodes" joined
  if [ -n "${JUDGE_HOST:-}" ]; then
    judge="http://$JUDGE_HOST:$JUDGE_PORT"
    export JUDGE_URLS="[$judge/v1]"
    await "the judge at $judge" curl --silent --fail --output /dev/null "$judge/health"
  fi
  RAY_ADDRESS="$HEAD:$RAY_PORT" bash "$SCRIPT" "$@"
elif [ "$NODE_RANK" -lt "$NNODES" ]; then
  await "the head at $HEAD:$RAY_PORT" up
  # shellcheck disable=SC2086
  ray start --address="$HEAD:$RAY_PORT" --block ${RAY_ARGS:-} &
  child="$!"
  follow_head
else
  vllm serve "${JUDGE_MODEL:?the judge to serve}" --port "$JUDGE_PORT" --tensor-parallel-size "${JUDGE_GPUS:-8}" \
    --max-model-len 8192 &
  child="$!"
  await "the head at $HEAD:$RAY_PORT" up
  follow_head
fi
