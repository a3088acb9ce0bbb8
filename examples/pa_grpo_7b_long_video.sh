#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PA-GRPO of Qwen2.5-VL-7B on long video: pa_grpo_7b.sh with FRAMES = 64 to 256 frames of 128 x 28 x 28 pixels, in training
# and validation. Two frames are 128 tokens, of small files, which are enlarged, up to 154; 1,024 are left for the text.
# ULYSSES splits a sequence, and the frames in the vision tower, over so many GPUs; one GPU handles up to 180 frames.
# Hardware: 1 node of 8 GPUs, 80 GB each, 1000 GB of host memory, a local disk of 500 GB for CACHE, and a judge elsewhere.
# Time: not run; our estimate is 32 h on A100 for 500 updates of 32 questions at 64 frames, 143 h at 256.
# Expect: not run, and not in the paper. EasyVideoR1's figure: keeping decoded frames makes a step 1.47 times faster.
# Data: rows whose videos are long enough to have as many frames at 2 a second; shorter ones simply give fewer.
#   FRAMES=128 CACHE=/local/frames TRAIN=… VAL=… MODEL=… bash examples/pa_grpo_7b_long_video.sh [overrides]
set -euo pipefail
export OUT="${OUT:-outputs/pa_grpo_7b_long_video}" BATCH="${BATCH:-32}" STEPS="${STEPS:-500}"
FRAMES="${FRAMES:-64}"
PROMPT=$((FRAMES / 2 * 154 + 1024))

exec bash "$(dirname "${BASH_SOURCE[0]}")/pa_grpo_7b.sh" \
  data.max_prompt_length="$PROMPT" \
  data.p2r.media.train.max_frames="$FRAMES" \
  data.p2r.media.val.max_frames="$FRAMES" \
  data.p2r.media.val.video_max_pixels=100352 \
  actor_rollout_ref.actor.ulysses_sequence_parallel_size="${ULYSSES:-$((FRAMES > 180 ? 2 : 1))}" \
  actor_rollout_ref.rollout.max_model_len="$((PROMPT + 1024))" \
  "$@"
