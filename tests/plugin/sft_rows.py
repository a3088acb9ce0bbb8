# SPDX-License-Identifier: Apache-2.0
"""Rows of SFT, and a function that loads them."""

import pandas as pd
import torch
from clip_prompts import SAMPLES
from omegaconf import OmegaConf

from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset

RESPONSE = "<observation>a red square moves left</observation><think>so</think><answer>left</answer>"


SIZE = {"resized_height": 112, "resized_width": 112}

# Like Qwen3.5's: an assistant's message is taken apart at `</think>`, and thinking starts in the generation prompt.
THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}<think>\n"
    "{{ parts[0].split('<think>')[-1] if parts | length > 1 else '' }}\n</think>\n\n{{ parts[-1] }}"
    "{% elif m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|video_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)


def video_row(clips, sample=SAMPLES[4], response: str = RESPONSE) -> dict:
    return {
        "messages": [{"role": "user", "content": "<video>What moves?"}, {"role": "assistant", "content": response}],
        "videos": [{"type": "video", "video": str(clips[sample[0]]), **sample[1], **SIZE}],
    }


def text_row(response: str = RESPONSE) -> dict:
    return {"messages": [{"role": "user", "content": "What moves?"}, {"role": "assistant", "content": response}]}


def loader(tmp_path, processor):
    """Return `load(rows, more_rows, …, **config)`: a dataset from one parquet file for each list of rows."""

    def make(*files: list[dict], max_samples=-1, processor=processor, **config) -> P2RSFTDataset:
        paths = []
        for number, rows in enumerate(files):
            paths.append(str(tmp_path / f"sft{number}.parquet"))
            pd.DataFrame(rows).to_parquet(paths[-1])
        config = OmegaConf.create({"pad_mode": "no_padding", "truncation": "error", "max_length": 500, **config})
        return P2RSFTDataset(paths, processor.tokenizer, config, processor=processor, max_samples=max_samples)

    return make


def split(row: dict[str, torch.Tensor]) -> tuple[list[int], list[int]]:
    """Ids without and with loss."""
    mask = row["loss_mask"].bool()
    return row["input_ids"][~mask].tolist(), row["input_ids"][mask].tolist()


def roles(*names: str) -> dict:
    return {"messages": [{"role": name, "content": "text"} for name in names]}


def ask(question: str, response: str = "a", **media) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": response}], **media}


NOWHERE = [{"video": "/nowhere/a.mp4"}]
