# SPDX-License-Identifier: Apache-2.0
"""No response holds a vision placeholder: verl bans them in vLLM; and what would happen if one did."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import qwen_models
import rollout_sampling
import torch
from clip_prompts import SAMPLES, encode, video
from verl.models.transformers import qwen2_vl
from verl.utils import hf_processor
from verl.workers.rollout.utils import get_vision_placeholder_token_ids

from verl_p2r.plugin.media.position_ids import qwen_position_ids


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_verl_finds_vision_placeholders_of_each_family(family, tiny_model, tmp_path):
    folder = tiny_model if family == "qwen2_5_vl" else qwen_models.save(tmp_path, family)
    processor = hf_processor(str(folder))
    names = ["<|image_pad|>", "<|video_pad|>"]
    assert processor.tokenizer.convert_ids_to_tokens(get_vision_placeholder_token_ids(processor)) == names


@pytest.mark.slow
def test_vllm_never_samples_placeholders_banned_by_verl(tiny_model, processor, tmp_path):
    from transformers import Qwen2_5_VLForConditionalGeneration

    # Whatever the hidden state, its product with one of two opposite rows of the output layer is large.
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_model)
    rows = model.lm_head.weight.data.mul_(0.01)
    rows[processor.video_token_id] = 10 * torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
    rows[processor.image_token_id] = -rows[processor.video_token_id]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, str(Path(rollout_sampling.__file__)), str(tmp_path)],
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sampled = json.loads(done.stdout.splitlines()[-1])
    placeholders = {processor.image_token_id, processor.video_token_id}
    assert sum(i in placeholders for i in sampled["stock"]) > len(sampled["stock"]) / 2
    assert placeholders.isdisjoint(sampled["banned"])
    assert placeholders.isdisjoint(sampled["after new weights"])


def test_verl_forward_fails_on_response_placeholder(tiny_model, processor, clips):
    # The positions take it for text, as vLLM does; verl's forward does not know which placeholder is the wrong one.
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_model).model
    ids, inputs = encode(processor, [video(clips, SAMPLES[1])])
    media = {key: inputs[key] for key in ("pixel_values_videos", "video_grid_thw")}
    qwen2_vl._get_input_embeds(model, ids[None], **media)
    response = torch.cat([ids, torch.tensor([processor.video_token_id])])
    assert qwen_position_ids(processor, response, inputs)[:, -1].unique().numel() == 2  # text and time, alike
    with pytest.raises(ValueError, match="Video features and video tokens do not match"):
        qwen2_vl._get_input_embeds(model, response[None], **media)
