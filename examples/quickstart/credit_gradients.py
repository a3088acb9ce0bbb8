# SPDX-License-Identifier: Apache-2.0
"""Score-function gradients of sampled responses, with their rewards: what `credit.py` measures.

For one prompt, `gradients_of` samples many responses from a checkpoint, rewards each distinct one with the package's
own code, and computes the gradient of its log-probability with respect to all parameters, separately for the tokens of
perception and of reasoning. Gradients are kept as count sketches, which preserve inner products.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import verl_p2r.plugin  # noqa: F401  first, because transformers needs the repaired torchvision

# isort: split
import numpy as np
import torch
from conversations import conversation
from qwen_vl_utils import process_vision_info
from torch import Tensor
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_p2r.accuracy import answer_accuracy
from verl_p2r.data.rows import Row
from verl_p2r.judge import get_judge
from verl_p2r.media.decode import install_reader
from verl_p2r.plugin.media.position_ids import qwen_position_ids
from verl_p2r.rewards import has_observation, perception_reward, reasoning_reward
from verl_p2r.segments import decode_response, perception_length, visible_lengths
from verl_p2r.settings import P2RSettings
from verl_p2r.template import parse_response

MAX_TOKENS = 48
"""The longest response, as in `rl.sh`."""
SETTINGS = P2RSettings.from_mapping(
    {
        "perception": {"length": {"minimum": 1, "maximum": 10}},
        "reasoning": {"length": {"minimum": 1, "maximum": 17}},
    }
)
"""The rewards of `rl.sh`."""

install_reader()


@dataclass(frozen=True)
class PromptGradients:
    """The distinct responses to one prompt with their rewards and sketched gradients; U responses, V observations.

    Args:
        count: how often each response was sampled. Shape: (U,), int64.
        perception: R_P with the verdict as it is and with the opposite verdict. Shape: (U, 2), float32.
        reasoning: R_R with the accuracy as it is and with 1 − accuracy. Shape: (U, 2), float32.
        right: whether perception and answer are right. Shape: (U, 2), float32, in [0, 1].
        observation: each response's row in `perception_gradients`. Shape: (U,), int64.
        perception_gradients: sketched gradients over perception tokens, once for equal tokens. Shape: (V, D), float32.
        reasoning_gradients: sketched gradients over reasoning tokens. Shape: (U, D), float32.
    """

    count: Tensor
    perception: Tensor
    reasoning: Tensor
    right: Tensor
    observation: Tensor
    perception_gradients: Tensor
    reasoning_gradients: Tensor


class CountSketch:
    """A random linear map to `dims` numbers whose inner products are unbiased estimates of the original ones.

    Each coordinate is added to one random bucket with a random sign (Charikar et al., 2002). The error of an inner
    product of unit vectors is about 1 / √dims.

    Args:
        size: length of the vectors.
        dims: number of buckets.
        seed: seed of the buckets and signs; sketches are comparable only with the same seed.
    """

    def __init__(self, size: int, dims: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.dims = dims
        self._bucket = torch.randint(0, dims, (size,), generator=generator)
        self._sign = torch.randint(0, 2, (size,), generator=generator).float() * 2 - 1

    def __call__(self, vector: Tensor) -> Tensor:
        """Sketch one vector of shape (size,) to shape (dims,)."""
        return torch.zeros(self.dims).index_add_(0, self._bucket, vector * self._sign)


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model takes it: token ids, four rows of positions, and the clip's pixels."""

    ids: Tensor
    positions: Tensor
    pixels: Mapping[str, Tensor]

    def continued(self, response: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Ids and positions of the prompt with a response: shapes (1, L) and (4, 1, L)."""
        steps = torch.arange(len(response))
        after = steps.expand(4, -1) + self.positions[1:].max() + 1
        after = torch.cat([(len(self.ids) + steps)[None], after[1:]])
        ids = torch.cat([self.ids, torch.tensor(response, dtype=torch.int64)])
        return ids[None], torch.cat([self.positions, after], 1)[:, None]


class Policy:
    """A checkpoint of the quickstart that samples responses and differentiates them.

    Args:
        folder: a Hugging Face model folder.
        dims: length of a sketched gradient.
    """

    def __init__(self, folder: Path, dims: int) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor.config = self.model.config  # where position ids find the family
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.sketch = CountSketch(sum(p.numel() for p in self.parameters), dims)
        self._end = self.model.config.text_config.eos_token_id
        # As in verl's rollouts: a vision placeholder without a medium means nothing.
        self._banned = [self.processor.video_token_id, self.processor.image_token_id]

    def encode(self, columns: Mapping[str, Any]) -> Encoded:
        """Encode the prompt of one row of verl's columns."""
        messages = conversation(columns["prompt"], columns["videos"])
        _, videos = process_vision_info(messages, return_video_metadata=True)
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = build_multimodal_processor_inputs(
            self.processor, text=[text], images=None, videos=videos, mm_processor_kwargs={}
        )
        inputs = dict(inputs.convert_to_tensors("pt"))
        ids = inputs.pop("input_ids")[0]
        positions = qwen_position_ids(self.processor, ids, inputs)
        return Encoded(ids, positions, {name: inputs[name] for name in ("pixel_values_videos", "video_grid_thw")})

    @torch.no_grad()
    def sample(self, prompt: Encoded, number: int, rng: np.random.Generator) -> dict[tuple[int, ...], int]:
        """Draw `number` independent responses at temperature 1, and count equal ones.

        Responses with a common prefix are computed once: the number of responses that share a prefix is split over the
        next tokens by one multinomial draw, which has the same distribution as independent sampling.
        """
        out = self.model(input_ids=prompt.ids[None], position_ids=prompt.positions[:, None], **prompt.pixels)
        prefixes: dict[tuple[int, ...], int] = {(): number}
        done: dict[tuple[int, ...], int] = {}
        for step in range(MAX_TOKENS):
            logits = out.logits[:, -1].double()
            logits[:, self._banned] -= 100.0
            shares = logits.softmax(-1).numpy()
            parents, grown = [], {}
            for parent, (prefix, count) in enumerate(prefixes.items()):
                drawn = rng.multinomial(count, shares[parent] / shares[parent].sum())
                for token in np.nonzero(drawn)[0].tolist():
                    response = (*prefix, token)
                    if token == self._end or step == MAX_TOKENS - 1:
                        done[response] = int(drawn[token])
                    else:
                        parents.append(parent)
                        grown[response] = int(drawn[token])
            if not grown:
                break
            prefixes, cache = grown, out.past_key_values
            cache.reorder_cache(torch.tensor(parents))
            positions = torch.full((4, len(grown), 1), int(prompt.positions[1:].max()) + 1 + step)
            positions[0] = len(prompt.ids) + step
            last = torch.tensor([response[-1] for response in grown])[:, None]
            out = self.model(input_ids=last, position_ids=positions, past_key_values=cache)
        return done

    def log_probabilities(self, prompt: Encoded, response: Sequence[int]) -> Tensor:
        """Log-probability of each token of a response, with its graph. Shape: (n,)."""
        ids, positions = prompt.continued(response)
        logits = self.model(input_ids=ids, position_ids=positions, use_cache=False, **prompt.pixels).logits[0]
        predicted = logits[len(prompt.ids) - 1 : -1].log_softmax(-1)
        return predicted.gather(1, torch.tensor(response)[:, None])[:, 0]

    def gradient(self, scalar: Tensor, *, again: bool = False) -> Tensor:
        """Sketch the gradient of a scalar with respect to all parameters; `again` keeps the graph."""
        parts = torch.autograd.grad(scalar, self.parameters, retain_graph=again, materialize_grads=True)
        return self.sketch(torch.cat([part.reshape(-1) for part in parts]))

    def gradients_of(self, columns: Mapping[str, Any], samples: int, seed: Sequence[int]) -> PromptGradients:
        """Sample responses to one row's prompt, reward them and differentiate them.

        Args:
            columns: the row, in verl's columns.
            samples: number of responses.
            seed: entropy for the random generator.
        """
        prompt, row = self.encode(columns), Row.from_columns(columns)
        responses = self.sample(prompt, samples, np.random.default_rng(seed))
        tokenizer = self.processor.tokenizer
        nothing = torch.zeros(self.sketch.dims)
        numbers: dict[tuple[int, ...], int] = {}
        rewards, observation, of_perception, of_reasoning = [], [], [], []
        for response in responses:
            boundary = perception_length(response, tokenizer)
            rewards.append(rewards_of(response, row, tokenizer))
            logs = self.log_probabilities(prompt, response)
            seen = response[:boundary]
            if seen not in numbers:
                numbers[seen] = len(numbers)
                of_perception.append(self.gradient(logs[:boundary].sum(), again=True) if boundary else nothing)
            observation.append(numbers[seen])
            of_reasoning.append(self.gradient(logs[boundary:].sum()) if boundary < len(response) else nothing)
        table = torch.tensor(rewards)
        return PromptGradients(
            count=torch.tensor(list(responses.values())),
            perception=table[:, 0],
            reasoning=table[:, 1],
            right=table[:, 2],
            observation=torch.tensor(observation),
            perception_gradients=torch.stack(of_perception),
            reasoning_gradients=torch.stack(of_reasoning),
        )


def rewards_of(response: Sequence[int], row: Row, tokenizer: Any) -> tuple[tuple[float, float], ...]:
    """Reward one response as `rl.sh` does, and as it would with the opposite verdict and the opposite accuracy.

    Returns:
        (R_P, R_P with the opposite verdict), (R_R, R_R with 1 − accuracy), (verdict, accuracy).
    """
    parsed = parse_response(decode_response(response, tokenizer))
    visible = visible_lengths(response, tokenizer)
    accuracy = answer_accuracy(row.problem_type, parsed.answer or "", row.solution, options=row.options)
    verdict = False
    if has_observation(parsed):
        request = row.judge_request(parsed.observation or "")
        verdict = bool(asyncio.run(get_judge("facts").judge(request)).value)
    perception = (perception_reward(parsed, visible[0], value, SETTINGS).total for value in (verdict, not verdict))
    reasoning = (reasoning_reward(parsed, visible[1], value, SETTINGS).total for value in (accuracy, 1 - accuracy))
    return tuple(perception), tuple(reasoning), (float(verdict), accuracy)
