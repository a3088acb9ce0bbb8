# SPDX-License-Identifier: Apache-2.0
"""The RL dataset: good rows load as verl's do, peers' records too; bad rows are left out or stop the run, by name."""

import asyncio
import copy
import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_p2r.data import screening
from verl_p2r.media.images import fetch_image
from verl_p2r.plugin.datasets.rl_dataset import P2RDataset
from verl_p2r.plugin.media import media_cache


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
    """`load(rows, more_rows or a path, …, **config)`: a dataset, from one parquet file for each list of rows."""

    def make(*files: list[dict] | Path, cls=P2RDataset, max_samples=-1, write=True, **config):
        paths = [file if isinstance(file, Path) else tmp_path / f"rl{i}.parquet" for i, file in enumerate(files)]
        for path, rows in zip(paths, files, strict=True):
            if write and isinstance(rows, list):
                pq.write_table(pa.Table.from_pylist(rows), path)
        settings = {"cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts": False, "return_raw_chat": True}
        config = OmegaConf.create({**settings, **config})
        return cls(list(map(str, paths)), processor.tokenizer, config, processor=processor, max_samples=max_samples)

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
    "no-path": (
        {"videos": [{"vidoe": "a.mp4", "fps": 2.0}]},
        "field videos holds {'fps': 2.0, 'vidoe': 'a.mp4'}",
        "without a path in 'video'",
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
    assert message.startswith("1 of 8 rows rejected (")
    assert f"{tmp_path}/rl1.parquet row 1: {field}" in message
    assert remedy in message


def test_every_row_of_an_unreadable_video_is_rejected_and_no_other_video_stands_in(load, clips, tmp_path):
    # A peer swaps a bad video for a fixed one and keeps the question.
    (tmp_path / "page.mp4").write_text("<html>404</html>")
    rows = [rl_row(clips["quick"], 0), *(rl_row(tmp_path / "page.mp4", i) for i in (1, 2)), rl_row(clips["odd"], 3)]
    with pytest.raises(ValueError, match=r"^2 of 4 rows rejected \(unreadable file 2\)") as caught:
        load(rows)
    assert f"rl0.parquet row 1: field videos: {tmp_path}/page.mp4: cannot be" in str(caught.value)
    dataset = load(rows, p2r={"max_reject_share": 0.5})
    assert [row["extra_info"]["index"] for row in dataset] == [0, 3]
    assert [row["raw_prompt"][0]["content"][0]["video"] for row in dataset] == [str(clips["quick"]), str(clips["odd"])]


def test_rules_that_a_video_cannot_satisfy_are_found_before_the_run(load, clips):
    clip = str(clips["quick"])
    rules = [{"fps": 2.0, "nframes": None}, {"fps": None, "nframes": 40}, {"fps": 2.0, "nframes": 4}]
    with pytest.raises(ValueError) as caught:
        load([rl_row(clip, i, videos=[{"video": clip, **rule}]) for i, rule in enumerate(rules)])
    head, first, second, _ = str(caught.value).splitlines()
    assert head == "2 of 3 rows rejected (sampling rules 2)"
    assert f"rl0.parquet row 1: field videos: {clip}: its sampling rules cannot be met: nframes should" in first
    assert f"rl0.parquet row 2: field videos: {clip}: its sampling rules cannot be met: Only accept either" in second


def test_a_path_as_text_is_checked_too(load, clips):
    load([rl_row("", 0, videos=[str(clips["quick"])]), rl_row("", 1, videos=[f"file://{clips['odd']}"])])
    with pytest.raises(ValueError, match=r"row 0: field videos: /nowhere/a\.mp4: no such file"):
        load([rl_row("", 0, videos=["/nowhere/a.mp4"])])


def test_many_rejects_are_counted_by_reason_and_the_first_shown(load, clips):
    rows = [rl_row(clips["quick"], i, problem_type="essay") for i in range(9)]
    with pytest.raises(ValueError) as caught:
        load([*rows, rl_row("/nowhere/a.mp4", 9)])
    lines = str(caught.value).splitlines()
    assert lines[0] == "10 of 10 rows rejected (unknown problem type 9, missing file 1)"
    assert lines[6] == "  … and 5 more"
    assert lines[7].startswith("That is more than data.p2r.max_reject_share=0.01: repair the data")
    assert len(lines) == 8


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_drawn_by_max_samples_keep_their_names(load, clips, tmp_path, shuffle):
    files = [[rl_row(clips["quick"], i, problem_type=f"essay {f}.{i}") for i in range(3)] for f in range(2)]
    with pytest.raises(ValueError) as caught:
        load(*files, max_samples=4, shuffle=shuffle, seed=0)
    shown = str(caught.value).splitlines()[1:-1]
    assert len(shown) == 4
    for line in shown:
        place = line.split("'")[1].removeprefix("essay ").split(".")
        assert line.startswith(f"  {tmp_path}/rl{place[0]}.parquet row {place[1]}: field problem_type")


@pytest.mark.parametrize("shuffle", [False, True])
def test_max_samples_draws_verls_rows(load, clips, shuffle):
    files = [[rl_row(clips["quick"], 10 * f + i) for i in range(5)] for f in range(2)]
    drawn = [load(*files, cls=cls, max_samples=4, shuffle=shuffle, seed=3) for cls in (P2RDataset, RLHFDataset)]
    ours, theirs = ([row["extra_info"]["index"] for row in dataset] for dataset in drawn)
    assert ours == theirs


def test_rows_that_max_samples_leaves_out_are_not_looked_at(load, clips):
    rows = [rl_row(clips["quick"], 0), rl_row("/nowhere/a.mp4", 1)]
    assert len(load(rows, max_samples=1)) == 1


def test_a_pickled_dataset_knows_its_bad_records(load, clips, tmp_path, processor):
    lines = [json.dumps(record(str(clips["quick"]))), "{broken", json.dumps(record(str(clips["odd"])))]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    dataset = load(tmp_path / "records.jsonl", p2r={"max_reject_share": 0.5})
    dataset.processor = None
    restored = pickle.loads(pickle.dumps(dataset))
    restored.processor = processor
    restored.resume_dataset_state()
    assert [row["index"] for row in restored] == [0, 2]


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


def length_of(processor, messages) -> int:
    """Tokens of a prompt as the agent loop makes it: media decoded, the processor called."""
    images, videos, _ = P2RDataset._process_multi_modal_info(messages, 14, None)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = build_multimodal_processor_inputs(processor, text=[text], images=images, videos=videos)
    return len(inputs["input_ids"][0])


def test_a_prompt_is_over_long_from_the_token_on_that_the_processor_makes_too_many(load, clips, image, processor):
    both = {"images": [{"image": image}], "prompt": [{"role": "user", "content": "<image>Then <video>what moves?"}]}
    rows = [rl_row(clips["quick"], 0), rl_row(clips["slow"], 1), image_row(image, 2), rl_row(clips["odd"], 3, **both)]
    lengths = [length_of(processor, row["raw_prompt"]) for row in load(rows)]
    assert len(set(lengths)) == 4
    for length in lengths:
        for limit in (length - 1, length):
            fits = [i for i in range(4) if lengths[i] <= limit]
            if not fits:
                continue
            dataset = load(rows, max_prompt_length=limit, p2r={"max_reject_share": 1})
            assert [row["extra_info"]["index"] for row in dataset] == fits


def test_rows_that_fit_are_those_of_verls_filter(load, clips):
    rows = [rl_row(clips[name], i) for i, name in enumerate(clips)]
    rows += [rl_row(clips["long"], 9, prompt=[{"role": "user", "content": "<video>" + "What moves? " * 9}])]
    stock = {"filter_overlong_prompts": True, "filter_overlong_prompts_workers": None}
    kept = {}
    for limit in (70, 90, 160):
        theirs = load(rows, cls=RLHFDataset, max_prompt_length=limit, **stock)
        kept[limit] = [row["extra_info"]["index"] for row in theirs]
        ours = load(rows, max_prompt_length=limit, p2r={"max_reject_share": 1})
        assert [row["extra_info"]["index"] for row in ours] == kept[limit]
    assert [len(indices) for indices in kept.values()] == [2, 5, 6]


def test_an_over_long_prompt_is_rejected_with_its_length(load, clips, processor):
    rows = [rl_row(clips["quick"], 0), rl_row(clips["slow"], 1)]
    long = length_of(processor, load(rows)[1]["raw_prompt"])
    with pytest.raises(ValueError, match=r"^1 of 2 rows rejected \(over-long 1\)") as caught:
        load(rows, max_prompt_length=long - 1)
    expected = (
        f"rl0.parquet row 1: its {long} tokens, 64 of them media, are more than data.max_prompt_length={long - 1}"
    )
    assert expected in str(caught.value)


def test_a_second_start_opens_no_medium_and_keeps_the_same_rows(load, clips, tmp_path, monkeypatch):
    bad = rl_row(clips["quick"], 1, problem_type="essay")
    rows = [rl_row(clips["quick"], 0), bad, rl_row(clips["odd"], 2), rl_row(clips["slow"], 3)]
    p2r = {"screen_cache": str(tmp_path / "screenings"), "rejects_dir": str(tmp_path / "run"), "max_reject_share": 0.3}
    first = load(rows, p2r=p2r)
    monkeypatch.setattr(screening, "probe_element", None)
    again = load(rows, p2r=p2r, write=False)
    assert [row["extra_info"]["index"] for row in first] == [row["extra_info"]["index"] for row in again] == [0, 2, 3]
    (line,) = (tmp_path / "run" / "rejected_train.jsonl").read_text().splitlines()
    reject = json.loads(line)
    assert (reject["file"], reject["row"], reject["field"]) == (str(tmp_path / "rl0.parquet"), 1, "problem_type")
    assert reject["reason"] == "unknown problem type"


@pytest.mark.parametrize(
    "change",
    [
        {"max_prompt_length": 500},
        {"apply_chat_template_kwargs": {"enable_thinking": False}},
        {"mm_processor_kwargs": {"max_pixels": 50176, "min_pixels": 3136}},
        {"max_samples": 1},
        {"media": {"train": {"max_frames": 8}}},
        {"media_root": "/"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_screened_anew(load, clips, tmp_path, change):
    own = {key: change[key] for key in ("media", "media_root") if key in change}
    rest = {key: value for key, value in change.items() if key not in own}
    rows = [rl_row(clips["quick"], 0), rl_row(clips["odd"], 1)]
    p2r = {"screen_cache": str(tmp_path / "screenings")}
    load(rows, p2r=p2r, max_prompt_length=400)
    load(rows, p2r=p2r, max_prompt_length=400, write=False)
    assert len(list((tmp_path / "screenings").iterdir())) == 1
    load(rows, p2r={**p2r, **own}, write=False, **{"max_prompt_length": 400, **rest})
    assert len(list((tmp_path / "screenings").iterdir())) == 2


def record(path, **changes) -> dict:
    return {
        "problem_id": 7,
        "problem": "How many? ",
        "data_type": "video",
        "problem_type": "numerical",
        "options": [],
        "solution": "<answer>3</answer>",
        "path": path,
        "data_source": "",
        **changes,
    }


def test_records_and_parquet_mix_and_relative_paths_start_from_the_media_root(load, clips, image, tmp_path):
    root = clips["quick"].parent
    (root / "picture.png").write_bytes(Path(image).read_bytes())
    records = [record("./quick.mp4"), record("picture.png", data_type="image"), record(str(clips["odd"]))]
    (tmp_path / "records.json").write_text(json.dumps(records))
    (tmp_path / "more.jsonl").write_text(json.dumps(record("slow.mp4", options="[]")) + "\n")
    p2r = {"media_root": str(root)}
    rows = [rl_row("film.mp4", 0)]
    dataset = load(rows, tmp_path / "records.json", tmp_path / "more.jsonl", p2r=p2r)
    media = [row["raw_prompt"][0]["content"][0] for row in dataset]
    assert [m.get("video") or m["image"] for m in media] == [
        str(root / "film.mp4"),
        str(root / "quick.mp4"),
        str(root / "picture.png"),
        str(clips["odd"]),
        str(root / "slow.mp4"),
    ]
    assert [row["index"] for row in dataset] == [0, 0, 1, 2, 0]
    assert dataset[1]["raw_prompt"][0]["content"][1]["text"].startswith("How many? \n\nWork on this in two steps")
    assert {row["reward_model"]["ground_truth"] for row in dataset} == {"<answer>3</answer>"}
    batch = collate_fn([dataset[i] for i in range(5)])
    assert {len(column) for column in batch.values()} == {5}


def test_a_bad_record_is_rejected_by_file_and_row_and_takes_no_other_with_it(load, clips, tmp_path):
    clip = str(clips["quick"])
    lines = [
        json.dumps(record(clip)),
        "{broken",
        json.dumps(record(clip, problem_type="essay")),
        json.dumps(record(clip)),
    ]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        ValueError, match=r"^2 of 4 rows rejected \(unreadable record 1, unknown problem type 1\)"
    ) as caught:
        load(tmp_path / "records.jsonl", p2r={})
    assert f"{tmp_path}/records.jsonl row 1: it is not JSON" in str(caught.value)
    assert f"{tmp_path}/records.jsonl row 2: field problem_type is 'essay'" in str(caught.value)
    dataset = load(tmp_path / "records.jsonl", p2r={"max_reject_share": 0.5})
    assert [row["index"] for row in dataset] == [0, 3]


def test_json_of_verls_columns_loads_as_verl_loads_it(load, clips, tmp_path):
    rows = [rl_row(clips["quick"], i) for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours, theirs = (load(tmp_path / "rows.jsonl", cls=cls) for cls in (P2RDataset, RLHFDataset))
    assert [row["reward_model"] for row in ours] == [row["reward_model"] for row in theirs]
    assert [row["extra_info"] for row in ours] == [row["extra_info"] for row in theirs]


def test_images_inside_the_parquet_are_measured_and_shown_as_verl_shows_them(load, clips, tmp_path):
    Image.new("RGB", (112, 112), "red").save(tmp_path / "red.png")
    rows = [{**image_row("", i), "images": [str(tmp_path / "red.png")]} for i in range(2)]
    pictures = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    pictures.to_parquet(tmp_path / "pictures.parquet")
    plain = [{**row, "images": [{"bytes": (tmp_path / "red.png").read_bytes(), "path": None}]} for row in rows]
    pq.write_table(pa.Table.from_pylist(plain), tmp_path / "bytes.parquet")
    for name in ("pictures", "bytes"):
        ours, theirs = (load(tmp_path / f"{name}.parquet", cls=cls) for cls in (P2RDataset, RLHFDataset))
        for dataset in (ours, theirs):
            (picture,), _, _ = asyncio.run(type(dataset).process_multi_modal_info(dataset[1]["raw_prompt"], 14, {}))
            assert picture.getpixel((5, 5)) == (255, 0, 0)
        with pytest.raises(ValueError, match=r"over-long 2"):
            load(tmp_path / f"{name}.parquet", max_prompt_length=20)
        mixed = load(tmp_path / f"{name}.parquet", [rl_row(clips["quick"], 0)])
        parts = [row["raw_prompt"][0]["content"][0] for row in mixed]
        assert [part["type"] for part in parts] == ["image", "image", "video"]
        assert fetch_image(parts[1], 14).getpixel((5, 5)) == (255, 0, 0)


def test_files_whose_columns_do_not_fit_together_are_named(load, clips, tmp_path):
    rows = [[rl_row(clips["quick"], 0, note="a")], [rl_row(clips["quick"], 1, note=[1])]]
    with pytest.raises(ValueError, match=r"rl0\.parquet, .*rl1\.parquet: their columns do not fit together"):
        load(*rows)


def test_files_whose_media_have_different_shapes_are_read_as_one_is(load, clips):
    rows = [[rl_row(clips["quick"], 0)], [rl_row("", 1, videos=[str(clips["quick"])])]]
    assert len(load(*rows)) == 2


def test_training_and_validation_have_media_settings_of_their_own_and_a_rows_fields_win(load, clips, tmp_path):
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


def test_a_prompt_template_of_the_users_own(load, clips, tmp_path):
    (tmp_path / "records.json").write_text(json.dumps([record(str(clips["quick"]))]))
    (tmp_path / "mine.txt").write_text("Look, then answer: {question}")
    dataset = load(tmp_path / "records.json", p2r={"prompt_template": str(tmp_path / "mine.txt")})
    assert dataset[0]["raw_prompt"][0]["content"][1]["text"] == "Look, then answer: How many? "
    with pytest.raises(ValueError, match=r"prompt template 'nowhere\.txt' cannot be read"):
        load(tmp_path / "records.json", p2r={"prompt_template": "nowhere.txt"})


def test_another_ending_is_refused_by_name(load, tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"rows\.csv: cannot be read: give a file ending in \.parquet, \.json,"):
        load(tmp_path / "rows.csv")


def test_media_of_a_prompt_are_decoded_once_and_given_out_in_lists_of_their_own(make_clip, monkeypatch):
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


def test_pictures_in_memory_are_never_taken_for_one_another():
    async def colour_of(colour):
        image = Image.new("RGB", (56, 56), colour)
        messages = [{"role": "user", "content": [{"type": "image", "image": image}]}]
        images, _, _ = await P2RDataset.process_multi_modal_info(messages, 14, None)
        return images[0].getpixel((0, 0))

    async def one_after_another():
        return [await colour_of((i, 0, 0)) for i in range(40)]

    assert asyncio.run(one_after_another()) == [(i, 0, 0) for i in range(40)]


def test_verls_trainer_makes_both_data_sets_from_our_config(clips, processor, tmp_path):
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
