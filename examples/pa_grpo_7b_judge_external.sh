#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-7B judged by a commercial API, as in the paper (Claude 3.7): pa_grpo_7b.sh with a key, patience
# for rate limits, and verdicts that are kept over runs. Any OpenAI-compatible endpoint; several share the load.
# The key is read from the environment variable that JUDGE_KEY_ENV names, and never logged.
# Hardware: as pa_grpo_7b.sh: 1 node of 8 GPUs, 80 GB each, 500 GB of host memory, with a way out to the judge.
# Time: not run; as pa_grpo_7b.sh. The paper's figure: the judge costs 9 % of the run.
# Expect: the paper's figures: the judge agrees with people on 95 % of 200 samples; accuracy 58.7. Ours: not run. At most
#   448 short calls an update; `verl-p2r judge-eval` says beforehand how good a judge is.
#   MODEL=… JUDGE_MODEL=… JUDGE_URLS=[https://…/v1] OPENAI_API_KEY=… bash examples/pa_grpo_7b_judge_external.sh [overrides]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/paths.bash"
export OUT="${OUT:-outputs/pa_grpo_7b_judge_external}"
: "${JUDGE_MODEL:?its name at the endpoint}" "${JUDGE_URLS:?a list of base URLs: [https://…/v1]}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b.sh" \
  algorithm.p2r.judge.kwargs.api_key_env="${JUDGE_KEY_ENV:-OPENAI_API_KEY}" \
  algorithm.p2r.judge.kwargs.concurrency="${JUDGE_CONCURRENCY:-8}" \
  algorithm.p2r.judge.kwargs.deadline_s=600 \
  algorithm.p2r.judge.kwargs.cache_file="$(quoted "$(realpath -m -- "${VERDICTS:-outputs/verdicts.sqlite}")")" \
  "$@"
