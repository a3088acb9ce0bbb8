# SPDX-License-Identifier: Apache-2.0
"""Clips, questions about them, and a tiny model that has learned what to say to each, right or wrong."""

import dataclasses
import json
import random
import time
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from omegaconf import OmegaConf
from own_forwards import own_forwards
from torch.nn.utils.rnn import pad_sequence

from data_tools.steps.generate_settings import prompt_of
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record

RATES = (4, 1, 3)  # frames a second of the clips in turn: a temporal grid is 1, 2 and 4/3 seconds
SIZE = {"fps": 2.0, "resized_height": 112, "resized_width": 112}


class World(NamedTuple):
    """Clips and questions about them, and a model that was taught what to say.

    Args:
        folder: the folder of all files.
        records: as `records.jsonl` there holds them.
        taught: the response to each.
        fates: what becomes of each: `kept`, or why it is dropped.
    """

    folder: Path
    records: list[Record]
    taught: list[str]
    fates: list[str]

    @property
    def model(self) -> Path:
        return self.folder / "taught"

    @property
    def template(self) -> PromptTemplate:
        return PromptTemplate.load(str(self.folder / "template.txt"))


def drawn(folder: Path, number: int) -> tuple[dict, str, str]:
    """A clip, a question about it, the response to be taught and what becomes of it."""
    import make_data
    import task

    rng = random.Random(number)
    fate = ("kept", "kept", "observation does not suffice", "accuracy below 0.6", "kept", "not in the template")[
        number % 6
    ]
    scene = task.sample_scene(rng, task.EASY, "sft_train", "single")
    scene = dataclasses.replace(scene, colours=(task.EASY.colours[number % 4],))
    with patch.object(task, "RATE", RATES[number % 3]):
        make_data.write_video(folder / f"{number}.mp4", task.render(scene))
    values = task.true_values(scene)
    question = task.ask(rng, task.EASY, "colour")
    said = dict(values)
    if fate == "observation does not suffice":
        said["direction"] = "up" if values["direction"] == "down" else "down"
    if fate == "accuracy below 0.6":
        said["colour"] = next(colour for colour in task.EASY.colours if colour != values["colour"])
    response = task.response(question, said)
    record = {
        "problem_id": number,
        "problem": question.text.splitlines()[0],
        "problem_type": question.problem_type,
        "options": [f"{letter}. {option}" for letter, option in zip("ABCD", question.options, strict=True)],
        "data_type": "video",
        "path": f"{number}.mp4",
        "media": SIZE,
        "solution": f"<answer>{task.solve(question, values)[1]}</answer>",
        "facts": task.facts(task.EASY, values),
    }
    return record, response.partition("</observation>")[2] if fate == "not in the template" else response, fate


def loaded(cls, path: Path, model: Path):
    """A parquet file in one of the plugin's datasets, and the processor; every row of it must be usable."""
    from verl.utils import hf_processor

    processor = hf_processor(str(model))
    config = {"max_length": 512, "truncation": "error", "pad_mode": "no_padding", "cache_dir": str(path.parent)}
    config |= {"filter_overlong_prompts": False, "return_raw_chat": True}  # a fork would inherit torch's threads
    dataset = cls(str(path), processor.tokenizer, OmegaConf.create(config), processor=processor)
    assert len(dataset) == len(pq.read_table(path))
    return dataset, processor


def padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Rows of the SFT dataset as a model's inputs, with labels where they have loss."""
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    masks = pad_sequence([row["loss_mask"] for row in rows], batch_first=True)
    inputs = {"input_ids": ids, "labels": ids.masked_fill(masks == 0, -100)}
    inputs["attention_mask"] = pad_sequence([torch.ones_like(row["input_ids"]) for row in rows], batch_first=True)
    positions = pad_sequence([row["position_ids"].T for row in rows], batch_first=True)
    inputs["position_ids"] = positions.permute(2, 0, 1)
    for name in ("pixel_values_videos", "video_grid_thw"):
        inputs[name] = torch.cat([row["multi_modal_inputs"][name] for row in rows])
    return inputs


@own_forwards()
def teach(folder: Path, tiny_model: Path) -> World:
    """Make twelve records and train a model until it repeats the response to each."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset

    start = time.monotonic()
    (folder / "template.txt").write_text("{question}\nObserve, think, then answer.\n")
    raw, taught, fates = zip(*(drawn(folder, number) for number in range(12)), strict=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in raw))
    world = World(folder, [Record.parse(record) for record in raw], list(taught), list(fates))
    rows = []
    for record, response in zip(world.records, taught, strict=True):
        content = [{"type": "video", "video": str(folder / record.path), **SIZE}]
        text = prompt_of(record, world.template)
        messages = [{"role": "user", "content": f"<video>{text}"}, {"role": "assistant", "content": response}]
        rows.append({"messages": messages, "videos": content})
    pq.write_table(pa.Table.from_pylist(rows), folder / "lesson.parquet")
    dataset, processor = loaded(P2RSFTDataset, folder / "lesson.parquet", tiny_model)
    inputs = padded([dataset[i] for i in range(len(rows))])
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for step in range(400):  # noqa: B007
        loss = model(**inputs).loss
        if loss < 5e-3:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss < 5e-3, f"a loss of {loss:.4f} after {step} steps"
    model.save_pretrained(world.model)
    processor.save_pretrained(world.model)
    print(f"\ntaught in {time.monotonic() - start:.0f} s: a loss of {loss:.4f} after {step} steps", flush=True)
    return world
