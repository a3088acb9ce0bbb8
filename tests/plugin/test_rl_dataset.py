# SPDX-License-Identifier: Apache-2.0
"""The RL dataset: good rows load as verl's do; each bad row stops the run with its file, row, field and remedy."""

import asyncio
import copy
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

from verl_p2r.plugin.rl_dataset import P2RDataset


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


@pytest.fixture
def load(tmp_path, processor):
    """`load(rows, more_rows, …, **config)`: a dataset from one parquet file for each list of rows."""

    def make(*files: list[dict], cls=P2RDataset, max_samples=-1, **config):
        paths = []
        for number, rows in enumerate(files):
            paths.append(str(tmp_path / f"rl{number}.parquet"))
            pq.write_table(pa.Table.from_pylist(rows), paths[-1])
        settings = {"cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts": False, "return_raw_chat": True}
        config = OmegaConf.create({**settings, **config})
        return cls(paths, processor.tokenizer, config, processor=processor, max_samples=max_samples)

    return make


@pytest.fixture
def image(tmp_path) -> str:
    Image.new("RGB", (112, 112)).save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def image_row(path: str, index: int, **changes) -> dict:
    prompt = [{"role": "user", "content": "<image>What is it?"}]
    return rl_row("", index, prompt=prompt, videos=None, images=[{"image": path}], **changes)


def test_good_rows_are_verls_rows(load, clips, image):
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


def test_fields_that_only_other_rows_have_are_not_set(load, clips):
    # In parquet a video has the fields of all videos: one with `nframes` also has `fps`, None.
    by_count = [{"video": str(clips["quick"]), "fps": None, "nframes": 4}]
    dataset = load([rl_row(clips["quick"], 0), rl_row(clips["quick"], 1, videos=by_count)])
    assert dataset.dataframe[1]["videos"][0]["fps"] is None
    part = dataset[1]["raw_prompt"][0]["content"][0]
    assert part == {"type": "video", "video": str(clips["quick"]), "nframes": 4}
    images, videos, _ = dataset._process_multi_modal_info(dataset[1]["raw_prompt"], 14, dataset.config)
    assert len(videos[0][0]) == 4
    assert images is None


BAD = {
    "unknown-type": ({"problem_type": "essay"}, "field problem_type is 'essay'", "give one of multiple choice"),
    "no-type": ({"problem_type": None}, "field problem_type is None", "give one of multiple choice"),
    "no-truth": ({"reward_model": {"style": "rule", "ground_truth": None}}, "field reward_model.ground_truth", "drop"),
    "no-media": (
        {"videos": None, "prompt": [{"role": "user", "content": "What moves?"}]},
        "fields images and videos are empty",
        "drop text-only rows",
    ),
    "no-placeholder": (
        {"prompt": [{"role": "user", "content": "What moves?"}]},
        "field prompt holds 0 <video> but the row has 1",
        "write one placeholder per medium",
    ),
    "two-placeholders": (
        {"prompt": [{"role": "user", "content": "<video><video>What moves?"}]},
        "field prompt holds 2 <video> but the row has 1",
        "write one placeholder per medium",
    ),
    "image-placeholder": (
        {"prompt": [{"role": "user", "content": "<video><image>What moves?"}]},
        "field prompt holds 1 <image> but the row has 0",
        "write one placeholder per medium",
    ),
    "missing-video": (
        {"videos": [{"video": "/nowhere/a.mp4", "fps": 2.0}]},
        "field videos: /nowhere/a.mp4: no such file",
        "local",
    ),
    "missing-image": (
        {"images": [{"image": "/nowhere/a.png"}], "prompt": [{"role": "user", "content": "<video><image>What?"}]},
        "field images: /nowhere/a.png: cannot be opened",
        "No such file",
    ),
}


@pytest.mark.parametrize("filtered", [False, True], ids=["", "filtered"])
@pytest.mark.parametrize(("changes", "field", "remedy"), BAD.values(), ids=list(BAD))
def test_a_bad_row_is_an_error_that_names_file_row_field_and_remedy(
    load, clips, tmp_path, changes, field, remedy, filtered
):
    # With the filter of long prompts on, verl alone drops a row it cannot process, and goes on.
    clip = str(clips["quick"])
    good = [rl_row(clip, i) for i in range(3)]
    bad = [rl_row(clip, 70), rl_row(clip, 71, **changes)]
    with pytest.raises(ValueError) as caught:
        load(good, bad, good, filter_overlong_prompts=filtered, filter_overlong_prompts_workers=None)
    message = str(caught.value)
    assert message.startswith("1 problem(s) in the data:\n")
    assert f"{tmp_path}/rl1.parquet row 1: {field}" in message
    assert remedy in message


def test_an_undecodable_video_is_reported_once_at_its_first_row(load, clips, tmp_path):
    (tmp_path / "page.mp4").write_text("<html>404</html>")
    rows = [rl_row(clips["quick"], 0), *(rl_row(tmp_path / "page.mp4", i) for i in (1, 2))]
    with pytest.raises(ValueError, match=r"^1 problem") as caught:
        load(rows)
    assert f"rl0.parquet row 1: field videos: {tmp_path}/page.mp4: cannot be opened as a video" in str(caught.value)


def test_rules_that_a_video_cannot_satisfy_are_found_before_the_run(load, clips):
    clip = str(clips["quick"])
    rules = [{"fps": 2.0, "nframes": None}, {"fps": None, "nframes": 40}, {"fps": 2.0, "nframes": 4}]
    with pytest.raises(ValueError) as caught:
        load([rl_row(clip, i, videos=[{"video": clip, **rule}]) for i, rule in enumerate(rules)])
    first, second = str(caught.value).splitlines()[1:]
    assert f"rl0.parquet row 1: field videos: {clip}: its sampling rules cannot be met: nframes should" in first
    assert f"rl0.parquet row 2: field videos: {clip}: its sampling rules cannot be met: Only accept either" in second


def test_a_path_as_text_is_checked_too(load, clips):
    load([rl_row("", 0, videos=[str(clips["quick"])]), rl_row("", 1, videos=[f"file://{clips['odd']}"])])
    with pytest.raises(ValueError, match=r"row 0: field videos: /nowhere/a\.mp4: no such file"):
        load([rl_row("", 0, videos=["/nowhere/a.mp4"])])


def test_many_problems_are_counted_and_the_first_shown(load, clips):
    with pytest.raises(ValueError) as caught:
        load([rl_row(clips["quick"], i, problem_type="essay") for i in range(9)])
    lines = str(caught.value).splitlines()
    assert lines[0] == "9 problem(s) in the data:"
    assert lines[-1] == "  … and 4 more"
    assert len(lines) == 7


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_drawn_by_max_samples_keep_their_names(load, clips, tmp_path, shuffle):
    files = [[rl_row(clips["quick"], i, problem_type=f"essay {f}.{i}") for i in range(3)] for f in range(2)]
    with pytest.raises(ValueError) as caught:
        load(*files, max_samples=4, shuffle=shuffle, seed=0)
    shown = str(caught.value).splitlines()[1:]
    assert len(shown) == 4
    for line in shown:
        place = line.split("'")[1].removeprefix("essay ").split(".")
        assert line.startswith(f"  {tmp_path}/rl{place[0]}.parquet row {place[1]}: field problem_type")


def test_rows_that_max_samples_leaves_out_are_not_looked_at(load, clips):
    rows = [rl_row(clips["quick"], 0), rl_row("/nowhere/a.mp4", 1)]
    assert len(load(rows, max_samples=1)) == 1


def test_facts_are_required_only_when_asked_for(load, clips):
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


def test_long_prompts_are_filtered_by_verl(load, clips):
    rows = [rl_row(clips["quick"], 0), rl_row(clips["slow"], 1)]  # 32 and 64 video tokens and 30 of text
    dataset = load(rows, filter_overlong_prompts=True, filter_overlong_prompts_workers=None, max_prompt_length=75)
    assert [row["extra_info"]["index"] for row in dataset] == [0]


def test_media_of_a_prompt_are_decoded_once_and_given_out_in_lists_of_their_own(clips, monkeypatch):
    decoded = []
    original = RLHFDataset._process_multi_modal_info.__func__

    def counting(cls, messages, **kwargs):
        decoded.append(messages)
        return original(cls, messages, **kwargs)

    monkeypatch.setattr(RLHFDataset, "_process_multi_modal_info", classmethod(counting))
    path = str(next(iter(clips.values())))
    messages = [{"role": "user", "content": [{"type": "video", "video": path}, {"type": "text", "text": "?"}]}]

    async def rollouts():
        return await asyncio.gather(*(P2RDataset.process_multi_modal_info(messages, 14, None) for _ in range(8)))

    results = asyncio.run(rollouts())
    assert len(decoded) == 1
    assert all(videos[0] is results[0][1][0] for _, videos, _ in results)
    assert len({id(videos) for _, videos, _ in results}) == 8


def test_pictures_in_memory_are_never_taken_for_one_another():
    async def colour_of(colour):
        image = Image.new("RGB", (56, 56), colour)
        messages = [{"role": "user", "content": [{"type": "image", "image": image}]}]
        images, _, _ = await P2RDataset.process_multi_modal_info(messages, 14, None)
        return images[0].getpixel((0, 0))

    async def one_after_another():
        return [await colour_of((i, 0, 0)) for i in range(40)]

    assert asyncio.run(one_after_another()) == [(i, 0, 0) for i in range(40)]


def test_a_failure_to_read_is_not_remembered(tmp_path, clips):
    path = tmp_path / "late.mp4"
    messages = [{"role": "user", "content": [{"type": "video", "video": str(path)}]}]

    async def twice():
        with pytest.raises(ValueError, match=r"late.mp4"):
            await P2RDataset.process_multi_modal_info(messages, 14, None)
        path.write_bytes(next(iter(clips.values())).read_bytes())
        return await P2RDataset.process_multi_modal_info(messages, 14, None)

    assert asyncio.run(twice())[1]
