# SPDX-License-Identifier: Apache-2.0
"""The SFT dataset: loss on the response alone, prompt and positions those of RL, and bad rows named."""

from fractions import Fraction

import pandas as pd
import pytest
import torch
from clip_prompts import SAMPLES, encode, medium, parts_of
from mrope_reference import true_positions
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader
from verl.utils.dataset.dataset_utils import DatasetPadMode, SFTTensorCollator
from verl.utils.model import extract_multi_modal_inputs

from verl_p2r.plugin.mrope import qwen2_position_ids
from verl_p2r.plugin.rl_dataset import P2RDataset
from verl_p2r.plugin.sft_dataset import P2RSFTDataset

RESPONSE = "<observation>a red square moves left</observation><think>so</think><answer>left</answer>"
SIZE = {"resized_height": 112, "resized_width": 112}


def video_row(clips, sample=SAMPLES[4], response: str = RESPONSE) -> dict:
    return {
        "messages": [{"role": "user", "content": "<video>What moves?"}, {"role": "assistant", "content": response}],
        "videos": [{"type": "video", "video": str(clips[sample[0]]), **sample[1], **SIZE}],
    }


def text_row(response: str = RESPONSE) -> dict:
    return {"messages": [{"role": "user", "content": "What moves?"}, {"role": "assistant", "content": response}]}


@pytest.fixture
def image_row(tmp_path) -> dict:
    Image.new("RGB", (112, 112), "red").save(tmp_path / "image.png")
    row = text_row()
    row["messages"][0]["content"] = "<image>What is it?"
    return {**row, "images": [{"image": str(tmp_path / "image.png"), **SIZE}]}


@pytest.fixture
def load(tmp_path, processor):
    """`load(rows, more_rows, …, **config)`: a dataset from one parquet file for each list of rows."""

    def make(*files: list[dict], max_samples=-1, **config) -> P2RSFTDataset:
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


def test_loss_lies_on_the_response_and_its_end_token_alone(load, clips, image_row, processor):
    dataset = load([video_row(clips), image_row, text_row()])
    expected = processor.tokenizer(RESPONSE + "<|im_end|>")["input_ids"]
    for i in range(3):
        prompt, response = split(dataset[i])
        assert response == expected
        assert dataset[i]["input_ids"].tolist() == prompt + response  # the prompt first, in one piece
        assert processor.tokenizer.decode(prompt).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert split(dataset[0])[0].count(processor.video_token_id) == 2 * 16
    assert split(dataset[1])[0].count(processor.image_token_id) == 16
    assert set(split(dataset[2])[0]).isdisjoint({processor.video_token_id, processor.image_token_id})


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_a_video_lies_at_its_true_seconds(load, clips, processor, sample):
    row = load([video_row(clips, sample)])[0]
    seconds = row["multi_modal_inputs"]["second_per_grid_ts"]
    assert seconds.tolist() == pytest.approx([float(Fraction(2) / sample[3])], rel=1e-7)
    truth = true_positions(parts_of(processor, row["input_ids"], [medium(sample)]))
    assert list(map(tuple, row["position_ids"][1:].T.tolist())) == truth
    assert row["position_ids"][0].tolist() == list(range(len(row["input_ids"])))


def test_prompt_and_positions_are_those_of_rl(load, clips, image_row, processor, tmp_path):
    rows = [video_row(clips, SAMPLES[7]), image_row]
    sft = load(rows)
    rl_rows = [
        {
            "prompt": row["messages"][:1],
            "videos": row.get("videos"),
            "images": row.get("images"),
            "problem_type": "numerical",
            "reward_model": {"ground_truth": "3"},
        }
        for row in rows
    ]
    pd.DataFrame(rl_rows).to_parquet(tmp_path / "rl.parquet")
    config = OmegaConf.create({"cache_dir": str(tmp_path), "filter_overlong_prompts": False})
    rl = P2RDataset(str(tmp_path / "rl.parquet"), processor.tokenizer, config, processor=processor)
    for i in range(2):
        ids, inputs = encode(processor, rl[i]["raw_prompt"][0]["content"])  # as the agent loop does
        row = sft[i]
        assert split(row)[0] == ids.tolist()
        assert torch.equal(row["position_ids"][:, : len(ids)], qwen2_position_ids(processor, ids, inputs))
        pixels = {key: value for key, value in inputs.items() if key not in ("attention_mask", "mm_token_type_ids")}
        assert row["multi_modal_inputs"].keys() == pixels.keys()
        assert all(torch.equal(row["multi_modal_inputs"][key], value) for key, value in pixels.items())


def test_mixed_rows_make_a_batch(load, clips, image_row):
    # The text row comes first: verl's collator asks the first row what there is.
    dataset = load([text_row(), video_row(clips, SAMPLES[4]), image_row, video_row(clips, SAMPLES[1])])
    loader = DataLoader(dataset, batch_size=4, collate_fn=SFTTensorCollator(DatasetPadMode.NO_PADDING))
    (batch,) = loader
    for i in range(4):
        row = dataset[i]
        assert torch.equal(batch["input_ids"][i], row["input_ids"])
        assert torch.equal(batch["loss_mask"][i], row["loss_mask"])
        assert torch.equal(batch["position_ids"][i], row["position_ids"])
    inputs = extract_multi_modal_inputs([entry.data for entry in batch["multi_modal_inputs"]])
    assert inputs["video_grid_thw"].tolist() == [[2, 8, 8], [2, 8, 8]]
    assert inputs["second_per_grid_ts"].tolist() == [2.0, 1.0]
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert len(inputs["pixel_values_videos"]) == 2 * 2 * 64


def test_files_with_other_columns_are_read_together(load, clips, image_row):
    dataset = load([video_row(clips)], [text_row()], [image_row])
    kinds = [sorted(dataset[i]["multi_modal_inputs"]) for i in range(3)]
    videos = ["pixel_values_videos", "second_per_grid_ts", "video_grid_thw"]
    assert kinds == [videos, [], ["image_grid_thw", "pixel_values"]]


def test_a_system_turn_and_earlier_user_turns_belong_to_the_prompt(load, processor):
    row = text_row()
    row["messages"].insert(0, {"role": "system", "content": "Watch closely."})
    prompt, response = split(load([row])[0])
    assert processor.tokenizer.decode(prompt).startswith("<|im_start|>system\nWatch closely.<|im_end|>")
    assert processor.tokenizer.decode(response) == RESPONSE + "<|im_end|>"


def roles(*names: str) -> dict:
    return {"messages": [{"role": name, "content": "text"} for name in names]}


BAD = {
    "no-response": (roles("user"), "roles ['user']: it must end with its only assistant message"),
    "user-last": (roles("user", "assistant", "user"), "it must end with its only assistant message"),
    "two-responses": (roles("user", "assistant", "user", "assistant"), "it must end with its only assistant message"),
    "too-long": (text_row("left " * 600), "tokens are more than data.max_length=500: raise it, take"),
    "missing-video": (
        {**text_row(), "messages": [{"role": "user", "content": "<video>?"}, {"role": "assistant", "content": "a"}]},
        "field messages holds <image> or <video> but fields images and videos are empty: give",
    ),
    "one-video-missing": (
        {
            "messages": [{"role": "user", "content": "<video><video>"}, {"role": "assistant", "content": "a"}],
            "videos": [{"video": "/nowhere/a.mp4"}],
        },
        "video_offset 1 >= len(videos) 1",
    ),
    "no-placeholder": ({**text_row(), "videos": [{"video": "/nowhere/a.mp4"}]}, "video_offset 0 != len(videos) 1"),
    "missing-file": (
        {
            "messages": [{"role": "user", "content": "<video>?"}, {"role": "assistant", "content": "a"}],
            "videos": [{"video": "/nowhere/a.mp4"}],
        },
        "/nowhere/a.mp4: no such file",
    ),
    "missing-image": (
        {
            "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "a"}],
            "images": [{"image": "/nowhere/a.png"}],
        },
        "'/nowhere/a.png'",
    ),
}


@pytest.mark.parametrize(("row", "reason"), BAD.values(), ids=list(BAD))
def test_a_bad_row_is_an_error_that_names_file_and_row(load, tmp_path, row, reason):
    dataset = load([text_row()] * 3, [text_row(), row], [text_row()])
    assert len(dataset[3]["input_ids"]) == len(dataset[0]["input_ids"])
    with pytest.raises(ValueError) as caught:
        dataset[4]
    assert str(caught.value).startswith(f"{tmp_path}/sft1.parquet row 1: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_row_drawn_by_max_samples_keeps_its_number(load, tmp_path, shuffle):
    files = [[roles("user", f"role-{f}-{i}") for i in range(4)] for f in range(2)]
    dataset = load(*files, max_samples=6, shuffle=shuffle, seed=0)
    for item in range(6):
        with pytest.raises(ValueError) as caught:
            dataset[item]
        place, reason = str(caught.value).split(": ", 1)
        file, row = reason.split("role-")[1].split("'")[0].split("-")
        assert place.endswith(f" row {row}")
        assert f"{tmp_path}/sft{file}.parquet" in place
        assert ("," in place) == shuffle  # a draw does not tell the file: both are named


def test_padding_is_refused(load):
    with pytest.raises(ValueError, match=r"data\.pad_mode is 'right'.*set no_padding"):
        load([text_row()], pad_mode="right")


def test_without_a_processor_verl_makes_the_rows(tmp_path, processor):
    pd.DataFrame([text_row()]).to_parquet(tmp_path / "sft.parquet")
    config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 500})
    row = P2RSFTDataset([str(tmp_path / "sft.parquet")], processor.tokenizer, config)[0]
    assert row["position_ids"].shape == row["input_ids"].shape
