# SPDX-License-Identifier: Apache-2.0
"""The SFT dataset: the loss covers the response alone, and prompt and positions are those of RL."""

import copy
import json
import multiprocessing
import re
from fractions import Fraction

import pandas as pd
import pytest
import qwen_models
import torch
from clip_prompts import SAMPLES, encode, layout_of, medium, parts_of, timestamps
from mrope_reference import true_positions
from omegaconf import OmegaConf
from qwen_vl_utils import vision_process
from sft_rows import RESPONSE, THINKING_TEMPLATE, ask, loader, split, text_row, video_row
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.utils import hf_processor
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode, SFTTensorCollator
from verl.utils.model import extract_multi_modal_inputs
from verl.workers.engine.utils import prepare_micro_batches

from verl_p2r.media.families import Time, family_of_model
from verl_p2r.plugin.datasets.first_rank import of_first_rank
from verl_p2r.plugin.datasets.rl_dataset import P2RDataset
from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset
from verl_p2r.plugin.media.position_ids import qwen_position_ids


@pytest.fixture
def load(tmp_path, processor):
    return loader(tmp_path, processor)


def test_sft_loss_covers_only_response_and_end_token(load, clips, image_row, processor):
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
def test_video_positions_follow_true_seconds(load, clips, processor, sample):
    row = load([video_row(clips, sample)])[0]
    seconds = row["multi_modal_inputs"]["second_per_grid_ts"]
    assert seconds.tolist() == pytest.approx([float(Fraction(2) / sample[3])], rel=1e-7)
    truth = true_positions(parts_of(processor, row["input_ids"], [medium(sample)]))
    assert list(map(tuple, row["position_ids"][1:].T.tolist())) == truth
    assert row["position_ids"][0].tolist() == list(range(len(row["input_ids"])))


def test_sft_prompt_and_positions_equal_rl(load, clips, image_row, processor, tmp_path):
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
        assert torch.equal(row["position_ids"][:, : len(ids)], qwen_position_ids(processor, ids, inputs))
        pixels = {key: value for key, value in inputs.items() if key not in ("attention_mask", "mm_token_type_ids")}
        assert row["multi_modal_inputs"].keys() == pixels.keys()
        assert all(torch.equal(row["multi_modal_inputs"][key], value) for key, value in pixels.items())


def test_text_image_and_video_rows_form_one_batch(load, clips, image_row):
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


def micro_batches(batch: dict, **settings) -> list[tuple[list[int], dict]]:
    """A batch as verl's trainer hands it to its engine, and the engine cuts it: rows and media of each piece."""
    pieces, order = prepare_micro_batches(tu.get_tensordict(tensor_dict=batch, non_tensor_dict=settings))
    order = order or [[i] for i in range(len(pieces))]
    return [
        (rows, extract_multi_modal_inputs(piece.get("multi_modal_inputs", [])))
        for rows, piece in zip(order, pieces, strict=True)
    ]


CUTS = {
    "fixed": {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 1},
    "dynamic": {"use_dynamic_bsz": True, "max_token_len_per_gpu": 160},
}


@pytest.mark.parametrize("settings", CUTS.values(), ids=list(CUTS))
def test_micro_batches_keep_each_rows_media(load, clips, image_row, settings):
    # A peer's collate kept the media of the last sample only.
    dataset = load([text_row(), video_row(clips, SAMPLES[4]), image_row, text_row(), video_row(clips, SAMPLES[2])])
    (batch,) = DataLoader(dataset, batch_size=5, collate_fn=SFTTensorCollator(DatasetPadMode.NO_PADDING))
    pieces = micro_batches(batch, **settings)
    assert sorted(row for rows, _ in pieces for row in rows) == list(range(5))
    for rows, got in pieces:
        expected = extract_multi_modal_inputs([dataset[i]["multi_modal_inputs"] for i in rows])
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], value) for key, value in expected.items())


@pytest.mark.parametrize("settings", CUTS.values(), ids=list(CUTS))
def test_a_batch_of_text_alone_has_no_media(load, settings):
    dataset = load([text_row(), text_row("right")])
    (batch,) = DataLoader(dataset, batch_size=2, collate_fn=SFTTensorCollator(DatasetPadMode.NO_PADDING))
    assert [media for _, media in micro_batches(batch, **settings)] in ([{}], [{}, {}])


def test_sft_dataset_calls_processor_once_per_sample(load, clips, image_row, processor):
    calls = []

    class Qwen2_5_VLProcessor(type(processor)):  # the dataset goes by this name
        def __call__(self, *args, **kwargs):
            calls.append(kwargs["text"])
            return super().__call__(*args, **kwargs)

    counting = copy.copy(processor)
    counting.__class__ = Qwen2_5_VLProcessor
    dataset = load([video_row(clips), image_row, text_row()], processor=counting)
    assert calls == []  # none while screening
    for i in range(3):
        dataset[i]
    assert len(calls) == 3


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "qwen3_5"])
def test_sft_positions_of_other_qwen_families_are_true(load, clips, image_row, tmp_path, family):
    processor = hf_processor(str(qwen_models.save(tmp_path / family, family)))
    rows = [video_row(clips, SAMPLES[8]), image_row, text_row()]
    dataset = load(rows, processor=processor)
    for i, media in enumerate([layout_of(family)(SAMPLES[8]), [(1, 4, 4, Fraction(1))], []]):
        truth = true_positions(parts_of(processor, dataset[i]["input_ids"], media))
        assert list(map(tuple, dataset[i]["position_ids"][1:].T.tolist())) == truth
        assert processor.tokenizer.decode(split(dataset[i])[1]) == RESPONSE + "<|im_end|>"
    seen = re.findall(r"<\d+\.\d seconds>", processor.tokenizer.decode(dataset[0]["input_ids"]))
    assert seen == (timestamps(clips, SAMPLES[8]) if family_of_model(family).time is Time.TEXT else [])


@pytest.mark.parametrize("thinking", [False, True])
def test_a_template_that_takes_responses_apart_does_not_touch_them(load, clips, tmp_path, thinking):
    """As Qwen3.5's: it keeps what is between `<think>` and `</think>`, and drops the observation before it."""
    processor = hf_processor(str(qwen_models.save(tmp_path / "qwen3_5", "qwen3_5")))
    processor.chat_template = THINKING_TEMPLATE
    rendered = processor.apply_chat_template(ask("What moves?", RESPONSE)["messages"], tokenize=False)
    assert rendered.endswith("<|im_start|>assistant\n<think>\nso\n</think>\n\n<answer>left</answer><|im_end|>\n")
    options = {"enable_thinking": thinking}
    dataset = load([video_row(clips, SAMPLES[8])], processor=processor, apply_chat_template_kwargs=options)
    prompt, response = split(dataset[0])
    assert processor.tokenizer.decode(response) == RESPONSE + "<|im_end|>"
    start = "<|im_start|>assistant\n<think>\n" + ("" if thinking else "\n</think>\n\n")
    assert processor.tokenizer.decode(prompt).endswith(start)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_data_loader_workers_produce_same_rows(load, clips, image_row, method):
    dataset = load([video_row(clips), text_row(), image_row, video_row(clips, SAMPLES[8])])
    loader = StatefulDataLoader(
        dataset,
        batch_size=2,
        num_workers=2,
        collate_fn=SFTTensorCollator(DatasetPadMode.NO_PADDING),
        multiprocessing_context=method,
    )
    batches = list(loader)
    for i in range(4):
        row, batch = dataset[i], batches[i // 2]
        for key in ("input_ids", "loss_mask", "position_ids"):
            assert torch.equal(batch[key][i % 2], row[key])
        got = batch["multi_modal_inputs"][i % 2].data
        assert got.keys() == row["multi_modal_inputs"].keys()
        assert all(torch.equal(got[key], value) for key, value in row["multi_modal_inputs"].items())


def rank(number: int, store: str, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    results.put((number, of_first_rank(lambda: f"made by {number}")))
    torch.distributed.destroy_process_group()


def test_all_ranks_use_screening_of_rank_0(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=rank, args=(i, str(tmp_path / "store"), results)) for i in range(2)]
    for process in ranks:
        process.start()
    assert sorted(results.get(timeout=60) for _ in ranks) == [(0, "made by 0"), (1, "made by 0")]
    for process in ranks:
        process.join()


def test_sft_dataset_reads_decoded_videos_from_disk_cache(load, clips, tmp_path, monkeypatch):
    config = {"media_cache": {"directory": str(tmp_path / "frames"), "disk_gib": 1}}
    first = load([video_row(clips)], p2r=config)[0]["multi_modal_inputs"]
    monkeypatch.setattr(vision_process, "fetch_video", None)  # nothing to decode with
    second = load([video_row(clips)], p2r=config)[0]["multi_modal_inputs"]
    assert all(torch.equal(second[key], value) for key, value in first.items())


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


def test_sft_dataset_applies_media_root_and_paper_frame_sizes(load, make_clip, processor):
    clip = make_clip(40, 2, side=448)  # 20 s: at 2 fps 40 frames, of which the paper takes 16
    row = ask("<video>?", videos=[{"video": clip.name}])
    dataset = load([row], max_length=4000, p2r={"media_root": str(clip.parent)})
    t, h, w = dataset[0]["multi_modal_inputs"]["video_grid_thw"][0].tolist()
    assert t == 8
    assert h * w * 14 * 14 <= 128 * 28 * 28
    few = load([row], p2r={"media_root": str(clip.parent), "media": {"train": {"max_frames": 4}}}, max_length=4000)
    assert few[0]["multi_modal_inputs"]["video_grid_thw"][0].tolist() == [2, h, w]


AWARE = "<observation>a\n red square</observation>\n<think>so\nit is</think>\n<answer>left</answer>"


@pytest.mark.parametrize(
    ("written", "learnt"),
    [
        (AWARE, "<think>so\nit is</think>\n<answer>left</answer>"),
        ("<think>so</think><answer>left</answer>", "<think>so</think><answer>left</answer>"),
        ("It moves left.", "It moves left."),
        ("First: <observation>a</observation> Then left.", "Then left."),
    ],
)
def test_process_agnostic_sft_rows_have_no_observation(load, processor, written, learnt):
    agnostic, aware = (load([text_row(written)], p2r={"process_aware": aware})[0] for aware in (False, True))
    assert processor.tokenizer.decode(split(agnostic)[1]) == learnt + "<|im_end|>"
    assert processor.tokenizer.decode(split(aware)[1]) == written + "<|im_end|>"
    assert split(agnostic)[0] == split(aware)[0]  # the same prompt


def test_observation_only_row_is_dropped_when_process_agnostic(load):
    rows = [text_row("<observation>a</observation>"), text_row()]
    config = {"process_aware": False, "max_reject_share": 0.5}
    assert len(load(rows, p2r=config)) == 1
    assert len(load(rows, p2r={"max_reject_share": 0.5})) == 2


def test_invalid_sft_data_setting_is_refused(load):
    with pytest.raises(ValueError, match=r"data\.p2r\.process_aware"):
        load([text_row()], p2r={"process_aware": "sometimes"})


ENDS = ["<|im_end|>", "<|im_end|>\n", " <|im_end|><|im_end|>", "<|endoftext|>", "<|im_end|>\n<|endoftext|>"]


@pytest.mark.parametrize("end", ENDS)
def test_end_tokens_after_response_are_not_trained_twice(load, end):
    # Responses that were saved with skip_special_tokens=False.
    assert split(load([text_row(RESPONSE + end)])[0]) == split(load([text_row()])[0])


MESSAGES = [text_row(), text_row("right")]


FILES = {
    "lines.json": "\n".join(map(json.dumps, MESSAGES)),
    "list.jsonl": json.dumps(MESSAGES),
    "bom.jsonl": "\ufeff" + "\n".join(map(json.dumps, MESSAGES)),
}


@pytest.mark.parametrize(("name", "text"), FILES.items(), ids=list(FILES))
def test_json_messages_are_read_with_any_file_extension(load, tmp_path, processor, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 500})
    dataset = P2RSFTDataset(str(tmp_path / name), processor.tokenizer, config, processor=processor)
    expected = load(MESSAGES)
    assert [split(dataset[i]) for i in range(2)] == [split(expected[i]) for i in range(2)]


def test_sft_dataset_reads_records_like_rl_dataset(tmp_path, clips, processor):
    record = {"problem": "How many?", "problem_type": "numerical", "data_type": "video", "path": clips["quick"].name}
    parts = {"observation": "a ball", "process": "<think>so</think>", "solution": "3"}
    records = [{**record, **parts}, {**record, "solution": "3"}]
    (tmp_path / "records.json").write_text(json.dumps(records))
    p2r = {"media_root": str(clips["quick"].parent), "max_reject_share": 0.5}
    config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 4000, "p2r": p2r})
    dataset = P2RSFTDataset(str(tmp_path / "records.json"), processor.tokenizer, config, processor=processor)
    assert len(dataset) == 1  # the other has no response
    prompt, response = map(processor.tokenizer.decode, split(dataset[0]))
    assert "How many?\n\nWork on this in two steps" in prompt
    assert response.startswith("<observation>a ball</observation>\n<think>so</think>\n<answer>3</answer>")


def test_whitespace_around_response_is_not_trained(load):
    assert split(load([text_row(f"\n {RESPONSE} \n")])[0]) == split(load([text_row()])[0])


def test_sft_padding_mode_is_refused(load):
    with pytest.raises(ValueError, match=r"data\.pad_mode is 'right'.*set no_padding"):
        load([text_row()], pad_mode="right")


def test_sft_rows_come_from_verl_without_processor(tmp_path, processor):
    pd.DataFrame([text_row()]).to_parquet(tmp_path / "sft.parquet")
    config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 500})
    row = P2RSFTDataset([str(tmp_path / "sft.parquet")], processor.tokenizer, config)[0]
    assert row["position_ids"].shape == row["input_ids"].shape
