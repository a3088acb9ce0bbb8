# SPDX-License-Identifier: Apache-2.0
"""Rows of RL, and a function that loads them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_p2r.plugin.datasets.rl_dataset import P2RDataset


def rl_row(clip, index: int, **changes) -> dict:
    row = {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": "<video>What moves?"}],
        "videos": [{"video": str(clip), "fps": 2.0}],
        "images": None,
        "problem_type": "numerical",
        "reward_model": {"style": "rule", "ground_truth": "<answer>3</answer>"},
        "extra_info": {"index": index, "split": "train", "question": "What moves?", "facts": ["red"]},
    }
    return {**row, **changes}


def image_row(path: str, index: int, **changes) -> dict:
    prompt = [{"role": "user", "content": "<image>What is it?"}]
    return rl_row("", index, prompt=prompt, videos=None, images=[{"image": path}], **changes)


def loader(tmp_path, processor):
    """Return `load(rows, more_rows or a path, …, **config)`: a dataset, from one parquet file for each list of rows."""

    def make(*files: list[dict] | Path, cls=P2RDataset, max_samples=-1, write=True, **config):
        paths = [file if isinstance(file, Path) else tmp_path / f"rl{i}.parquet" for i, file in enumerate(files)]
        for path, rows in zip(paths, files, strict=True):
            if write and isinstance(rows, list):
                pq.write_table(pa.Table.from_pylist(rows), path)
        settings = {"cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts": False, "return_raw_chat": True}
        config = OmegaConf.create({**settings, **config})
        return cls(list(map(str, paths)), processor.tokenizer, config, processor=processor, max_samples=max_samples)

    return make


def length_of(processor, messages) -> int:
    """Tokens of a prompt as the agent loop makes it: media decoded, the processor called."""
    images, videos, _ = P2RDataset._process_multi_modal_info(messages, 14, None)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = build_multimodal_processor_inputs(processor, text=[text], images=images, videos=videos)
    return len(inputs["input_ids"][0])
