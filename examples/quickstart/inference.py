# SPDX-License-Identifier: Apache-2.0
"""Ask a checkpoint folder about videos, with vLLM in this process: what `evaluate.py` and `ask.py` share."""

import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # no worker process to orphan
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


if os.environ["VERL_PLATFORM"] == "cpu":
    from verl_p2r.plugin.cpu.platform_env import ROLLOUT_ENV

    for name, value in ROLLOUT_ENV.items():
        os.environ.setdefault(name, value)

from qwen_vl_utils import process_vision_info
from transformers import AutoProcessor
from vllm import LLM, SamplingParams

from verl_p2r.media.decode import install_reader

install_reader()


class Model:
    """A checkpoint that answers questions about videos.

    Args:
        folder: a Hugging Face model folder.
        max_tokens: the longest response, in tokens.
        seed: seed of the sampling (the engine's: vLLM's CPU build has no seeds per request).
    """

    def __init__(self, folder: Path, max_tokens: int = 48, seed: int = 0):
        self.processor = AutoProcessor.from_pretrained(folder)
        self.max_tokens = max_tokens
        self.llm = LLM(
            str(folder),
            dtype="float32",
            enforce_eager=True,
            max_model_len=256,
            max_num_seqs=128,
            seed=seed,
            gpu_memory_utilization=0.3,
            limit_mm_per_prompt={"video": 1, "image": 0},
        )

    def answer(self, conversations: Sequence[list[dict]], temperature: float) -> list[str]:
        """Answer each conversation, whose user turn holds a video element and a text.

        Args:
            conversations: messages as in verl's parquet, with media in place.
            temperature: 0 for the likeliest tokens.

        Returns:
            The responses' text, in order.
        """
        prompts = []
        for messages in conversations:
            _, videos = process_vision_info(messages, return_video_metadata=True)
            text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            prompts.append({"prompt": text, "multi_modal_data": {"video": videos}})
        # As in verl's rollouts: a vision placeholder without a medium behind it means nothing.
        banned = {self.processor.video_token_id: -100.0, self.processor.image_token_id: -100.0}
        sampling = SamplingParams(temperature=temperature, max_tokens=self.max_tokens, logit_bias=banned)
        outputs = self.llm.generate(prompts, sampling, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]
