# SPDX-License-Identifier: Apache-2.0
"""SFT rows with video placed right in time; named by `data.custom_cls`.

verl's dataset loads a video without its metadata, so that the Hugging Face processor assumes 24 fps, and tokenizes each
message apart. Here one processor call makes the prompt exactly as the agent loop makes it in RL, the response is
tokenized behind it, and the loss lies on the response alone.
"""

from bisect import bisect_right
from itertools import accumulate
from typing import Any

import torch
from pyarrow.parquet import read_metadata
from qwen_vl_utils import process_vision_info
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_p2r.plugin.mrope import FAMILY, qwen2_position_ids
from verl_p2r.plugin.rl_dataset import P2RDataset


class P2RSFTDataset(MultiTurnSFTDataset):
    """Rows of `messages` that end with the assistant's response, with `videos` and `images` beside them.

    For the Qwen2-VL family; other families take verl's own path. Needs `data.pad_mode=no_padding`.

    Raises:
        ValueError: naming file and row, when the row does not end with one assistant message, its media cannot be
            read, or it is longer than `data.max_length` (a cut would separate pixels from their tokens).
    """

    def __getitem__(self, item: int) -> dict[str, Any]:
        if self.processor is None or type(self.processor).__name__ not in FAMILY:
            return super().__getitem__(item)
        try:
            return self._encode({**self.dataframe.iloc[item].to_dict(), self.messages_key: self.messages[item]})
        except (ValueError, TypeError, OSError, AssertionError) as error:
            raise ValueError(f"{self._place(item)}: {error}") from error

    def _place(self, item: int) -> str:
        """What names a row in messages: its file, and its row there."""
        row = self.dataframe.index[item]  # verl's concatenation keeps each file's own numbers
        files = [str(file) for file in self.parquet_files]
        if self.max_samples <= 0 or not self.shuffle:  # else rows were drawn from all files
            ends = list(accumulate(read_metadata(file).num_rows for file in files))
            files = [files[bisect_right(ends, item)]]
        return f"{', '.join(files)} row {row}"

    def _encode(self, row: dict[str, Any]) -> dict[str, Any]:
        prompt, response = self._split(row)
        images, videos = process_vision_info(prompt, image_patch_size=self.image_patch_size, return_video_metadata=True)
        inputs = dict(
            build_multimodal_processor_inputs(
                self.processor,
                text=[self._text(prompt, add_generation_prompt=True)],
                images=images,
                videos=videos,
                mm_processor_kwargs=self.mm_processor_kwargs,
            ).convert_to_tensors("pt")
        )
        prompt_ids = inputs.pop("input_ids")[0]
        for name in ("attention_mask", "mm_token_type_ids"):
            inputs.pop(name, None)
        response_ids = torch.tensor(self.tokenizer(response, add_special_tokens=False)["input_ids"])
        input_ids = torch.cat([prompt_ids, response_ids])
        if len(input_ids) > self.max_length:
            raise ValueError(
                f"{len(input_ids)} tokens are more than data.max_length={self.max_length}: raise it, take "
                "fewer or smaller frames, or drop the row"
            )
        return {
            "input_ids": input_ids,
            "position_ids": qwen2_position_ids(self.processor, input_ids, inputs),
            "loss_mask": torch.cat([torch.zeros_like(prompt_ids), torch.ones_like(response_ids)]),
            "multi_modal_inputs": inputs,
        }

    def _read_files_and_process(self):
        super()._read_files_and_process()
        self.mm_processor_kwargs = self.apply_chat_template_kwargs.get("mm_processor_kwargs", {})
        if self.pad_mode != "no_padding":
            raise ValueError(f"data.pad_mode is {self.pad_mode!r}: P2RSFTDataset makes unpadded rows, set no_padding")

    def _split(self, row: dict[str, Any]) -> tuple[list[dict], str]:
        """The prompt's messages with media in place, and the response's text up to and with its end token."""
        messages = _MessageBuilder(self)._build_messages(row, key=self.messages_key)
        roles = [message["role"] for message in messages]
        if "assistant" not in roles or roles.index("assistant") != len(roles) - 1:
            raise ValueError(
                f"field {self.messages_key} has roles {roles}: it must end with its only assistant message"
            )
        texts = [message["content"] for message in messages[:-1] if isinstance(message["content"], str)]
        if any(tag in text for text in texts for tag in ("<image>", "<video>")):  # verl leaves them in the text
            raise ValueError(
                f"field {self.messages_key} holds <image> or <video> but fields {self.image_key} and {self.video_key} "
                "are empty: give the row its media"
            )
        whole, prompt = self._text(messages), self._text(messages[:-1], add_generation_prompt=True)
        if not whole.startswith(prompt):
            raise ValueError("the chat template changes the prompt when a response follows: it cannot be trained on")
        return messages[:-1], whole[len(prompt) :].rstrip()

    def _text(self, messages: list[dict], **kwargs) -> str:
        return self.processor.apply_chat_template(
            messages, tokenize=False, **{**self.apply_chat_template_kwargs, **kwargs}
        )


class _MessageBuilder(P2RDataset):
    """The RL dataset's `_build_messages` (placeholders to media), for the columns of an SFT row."""

    def __init__(self, dataset: MultiTurnSFTDataset):
        self.image_key, self.video_key, self.audio_key = dataset.image_key, dataset.video_key, "audios"
        self.processor = dataset.processor

    def _build_messages(self, example: dict, key: str):
        messages = [dict(message) for message in example[key]]
        return super()._build_messages({**example, key: messages}, key)
