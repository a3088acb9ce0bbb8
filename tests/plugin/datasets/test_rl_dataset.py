# SPDX-License-Identifier: Apache-2.0
"""The RL dataset loads good rows as verl does, with media decoded once and settings for each split."""

import asyncio
import copy
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_module
from PIL import Image
from rl_rows import image_row, loader, rl_row
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

from verl_p2r.plugin.datasets.rl_dataset import P2RDataset
from verl_p2r.plugin.media import media_cache


@pytest.fixture
def load(tmp_path, processor):
    return loader(tmp_path, processor)


def test_valid_rl_rows_equal_verl_rows(load, clips, image):
    rows = [rl_row(clips["quick"], 0), rl_row(clips["odd"], 1), image_row(image, 2)]
    for row in rows[:2]:
        row["videos"] = [{"type": "video", "video": row["videos"][0]["video"], "fps": 2.0}]
    ours, theirs = load(rows), load(rows, cls=RLHFDataset)
    assert len(ours) == len(theirs) == 3
    ours.require_facts()
    for mine, stock in zip(ours, theirs, strict=True):
        mine.pop("dummy_tensor"), stock.pop("dummy_tensor")
        assert mine == stock
    assert ours[0]["raw_prompt"][0]["content"][0]["video"] == str(clips["quick"])
    batch = collate_fn([ours[i] for i in range(3)])
    assert isinstance(batch["raw_prompt"], np.ndarray)


def test_media_fields_set_only_by_other_rows_are_omitted(load, clips):
    # In parquet a video has the fields of all videos: one with `nframes` also has `fps`, None.
    by_count = [{"video": str(clips["quick"]), "fps": None, "nframes": 4}]
    dataset = load([rl_row(clips["quick"], 0), rl_row(clips["quick"], 1, videos=by_count)])
    assert dataset.dataframe[1]["videos"][0]["fps"] is None
    part = dataset[1]["raw_prompt"][0]["content"][0]
    assert part == {"type": "video", "video": str(clips["quick"]), "nframes": 4}
    images, videos, _ = dataset._process_multi_modal_info(dataset[1]["raw_prompt"], 14, dataset.config)
    assert len(videos[0][0]) == 4
    assert images is None


@pytest.mark.parametrize("shuffle", [False, True])
def test_max_samples_draws_same_rows_as_verl(load, clips, shuffle):
    files = [[rl_row(clips["quick"], 10 * f + i) for i in range(5)] for f in range(2)]
    drawn = [load(*files, cls=cls, max_samples=4, shuffle=shuffle, seed=3) for cls in (P2RDataset, RLHFDataset)]
    ours, theirs = ([row["extra_info"]["index"] for row in dataset] for dataset in drawn)
    assert ours == theirs


def test_rows_excluded_by_max_samples_are_not_screened(load, clips):
    rows = [rl_row(clips["quick"], 0), rl_row("/nowhere/a.mp4", 1)]
    assert len(load(rows, max_samples=1)) == 1


def test_facts_are_required_only_after_require_facts(load, clips):
    rows = [rl_row(clips["quick"], 0), rl_row(clips["quick"], 1, extra_info={"index": 5, "split": "train"})]
    dataset = load(rows)
    with pytest.raises(ValueError, match=r"rl0\.parquet: train row 5: field extra_info\.facts is missing.*judge\.name"):
        dataset.require_facts()


def test_a_pickled_dataset_resumes_from_its_files(load, clips, processor):
    # verl's dataloader state: rows are not in it, they are read again.
    dataset = load([rl_row(clips["quick"], 0)], [rl_row(clips["odd"], 1)])
    before = [copy.deepcopy(dataset[i]["raw_prompt"]) for i in range(2)]
    dataset.processor = None  # verl binds methods to it that cannot be pickled
    restored = pickle.loads(pickle.dumps(dataset))
    restored.processor = processor
    assert not hasattr(restored, "dataframe")
    restored.resume_dataset_state()
    assert [restored[i]["raw_prompt"] for i in range(2)] == before


def test_train_and_val_media_settings_are_separate_and_rows_override(load, clips, tmp_path):
    clip = str(clips["quick"])
    rows = [rl_row(clip, 0, videos=[{"video": clip}]), rl_row(clip, 1, videos=[{"video": clip, "max_frames": 6}])]
    file = str(tmp_path / "rl0.parquet")
    train = load(rows, p2r={}, train_files=[file], val_files="other.parquet")
    val = load(rows, p2r={}, train_files=["other.parquet"], val_files=file)
    frames = [[row["raw_prompt"][0]["content"][0]["max_frames"] for row in dataset] for dataset in (train, val)]
    assert frames == [[16, 6], [32, 6]]
    assert [d[0]["raw_prompt"][0]["content"][0]["max_pixels"] for d in (train, val)] == [128 * 28**2, 256 * 28**2]
    same = load(rows, p2r={}, train_files=file, val_files=[file])
    assert same[0]["raw_prompt"][0]["content"][0]["max_frames"] == 16


def test_prompt_media_are_decoded_once_and_returned_in_separate_lists(make_clip, monkeypatch):
    decoded = []
    original = media_cache.Source.decode

    def counting(self, *args):
        decoded.append(self)
        return original(self, *args)

    monkeypatch.setattr(media_cache.Source, "decode", counting)
    path = str(make_clip(8, 4))
    messages = [{"role": "user", "content": [{"type": "video", "video": path}, {"type": "text", "text": "?"}]}]

    async def rollouts():
        return await asyncio.gather(*(P2RDataset.process_multi_modal_info(messages, 14, {}) for _ in range(8)))

    results = asyncio.run(rollouts())
    assert len(decoded) == 1
    assert len({id(videos) for _, videos, _ in results}) == 8
    assert all(videos[0][0].data_ptr() == results[0][1][0][0].data_ptr() for _, videos, _ in results)


def test_in_memory_images_are_never_confused():
    async def colour_of(colour):
        image = Image.new("RGB", (56, 56), colour)
        messages = [{"role": "user", "content": [{"type": "image", "image": image}]}]
        images, _, _ = await P2RDataset.process_multi_modal_info(messages, 14, None)
        return images[0].getpixel((0, 0))

    async def one_after_another():
        return [await colour_of((i, 0, 0)) for i in range(40)]

    assert asyncio.run(one_after_another()) == [(i, 0, 0) for i in range(40)]


def test_verl_trainer_builds_both_datasets_from_our_config(clips, processor, tmp_path):
    clip = str(clips["quick"])
    rows = [rl_row(clip, i, videos=[{"video": clip}]) for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    pq.write_table(pa.Table.from_pylist([*rows, rl_row(clip, 9, problem_type="essay")]), tmp_path / "val.parquet")
    with initialize_config_module("verl_p2r.config", version_base=None):
        files = [f"data.train_files={tmp_path}/train.parquet", f"data.val_files=[{tmp_path}/val.parquet]"]
        run = [f"trainer.default_local_dir={tmp_path}/run", f"data.p2r.screen_cache={tmp_path}/screenings"]
        data = compose("p2r_ppo", [*files, *run, "data.p2r.max_reject_share=0.2"]).data
    made = {
        split: create_rl_dataset(
            data[f"{split}_files"], data, processor.tokenizer, processor, is_train=split == "train"
        )
        for split in ("train", "val")
    }
    assert {split: len(dataset) for split, dataset in made.items()} == {"train": 4, "val": 4}
    frames = {split: dataset[0]["raw_prompt"][0]["content"][0]["max_frames"] for split, dataset in made.items()}
    assert frames == {"train": 16, "val": 32}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["rejected_val.jsonl"]
