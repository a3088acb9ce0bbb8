# SPDX-License-Identifier: Apache-2.0
"""Whether a vLLM server shows its model each video as training does: log-probabilities from both are compared."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import torch
from own_forwards import own_forwards
from taught_world import SIZE, World, loaded, padded

from data_tools.media.parts import media_parts
from data_tools.steps.generate_settings import prompt_of
from verl_p2r.data.record import Record
from verl_p2r.media.plan import VisionSpec, plan_video, prompt_tokens
from verl_p2r.media.positions import mrope_positions
from verl_p2r.media.probe import probe_video
from verl_p2r.media.rules import TRAINING

STOCK = 2 / 24  # seconds per temporal grid of a video without times: 24 fps


@own_forwards()
def check_served_as_trained(world: World, server: str) -> None:
    """Compare a server of the taught model with our own forward pass on every record.

    Args:
        world: the records and the model.
        server: URL of a server that knows the model by the name `taught`.
    """
    for true, stock in differences(world, server):
        assert true < 0.05  # JPEG moves pixels by a level or two
        assert stock > 0.1, "the measure does not tell the file's own times from the 24 fps of a video without any"


def differences(world: World, server: str) -> Iterator[tuple[float, float]]:
    """Yield, per record, the largest difference from our log-probabilities at the true times, and at 24 fps."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset

    lesson, processor = loaded(P2RSFTDataset, world.folder / "lesson.parquet", world.model)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(world.model, dtype=torch.float32)
    spec = VisionSpec.from_processor(processor)
    for i, record in enumerate(world.records):
        reply = first_token(world, server, record)
        path = str(world.folder / record.path)
        plan = plan_video(TRAINING.fill({"video": path, **SIZE}), probe_video(path), spec)
        content = [{"type": "video"}, {"type": "text", "text": prompt_of(record, world.template)}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert reply["usage"]["prompt_tokens"] == prompt_tokens(text, [plan], processor.tokenizer, spec)
        top = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        tokens = [int(entry["token"].removeprefix("token_id:")) for entry in top]
        served = torch.tensor([entry["logprob"] for entry in top])
        ours = (logprobs_of(model, processor, lesson[i], tokens, seconds) for seconds in (None, STOCK))
        true, stock = ((log_probs - served).abs().max().item() for log_probs in ours)
        yield true, stock


def first_token(world: World, server: str, record: Record) -> dict:
    """The server's reply to the request that `generate` makes, cut after one token, with the likeliest ones."""
    media = media_parts(record, world.folder, TRAINING)
    content = [*media.parts, {"type": "text", "text": prompt_of(record, world.template)}]
    body = {"model": "taught", "messages": [{"role": "user", "content": content}], **media.body, "max_tokens": 1}
    body |= {"temperature": 0.0, "logprobs": True, "top_logprobs": 20, "return_tokens_as_token_ids": True}
    request = urllib.request.Request(f"{server}/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        pytest.fail(f"{error}: {error.read().decode(errors='replace')}")


def logprobs_of(model, processor, row: dict, tokens: list[int], seconds: float | None = None) -> torch.Tensor:
    """Our own log-probabilities of tokens behind the prompt of an SFT row; with other seconds for a temporal grid."""
    prompt = int((row["loss_mask"] == 0).sum())
    inputs = padded([row])
    del inputs["labels"]
    if seconds is not None:
        placeholders = [processor.image_token_id, processor.video_token_id]
        grids = row["multi_modal_inputs"]["video_grid_thw"].tolist()
        vision = mrope_positions(row["input_ids"], grids, [seconds], placeholder_ids=placeholders, merge_size=2)
        inputs["position_ids"][1:] = vision.unsqueeze(1)
    with torch.no_grad():
        return model(**inputs).logits[0, prompt - 1].log_softmax(-1)[tokens]
