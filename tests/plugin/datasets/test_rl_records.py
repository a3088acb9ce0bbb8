# SPDX-License-Identifier: Apache-2.0
"""Records, JSON and parquet of any shape load as RL rows; a bad one costs itself alone."""

import asyncio
import json
import pickle
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rl_rows import image_row, loader, rl_row
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

from verl_p2r.media.images import fetch_image
from verl_p2r.plugin.datasets.rl_dataset import P2RDataset


@pytest.fixture
def load(tmp_path, processor):
    return loader(tmp_path, processor)


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


def test_records_and_parquet_load_together_relative_to_media_root(load, clips, image, tmp_path):
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


def test_bad_record_is_rejected_alone_with_file_and_row(load, clips, tmp_path):
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


def test_pickled_dataset_still_skips_bad_records(load, clips, tmp_path, processor):
    lines = [json.dumps(record(str(clips["quick"]))), "{broken", json.dumps(record(str(clips["odd"])))]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    dataset = load(tmp_path / "records.jsonl", p2r={"max_reject_share": 0.5})
    dataset.processor = None
    restored = pickle.loads(pickle.dumps(dataset))
    restored.processor = processor
    restored.resume_dataset_state()
    assert [row["index"] for row in restored] == [0, 2]


def test_json_with_verl_columns_loads_like_verl(load, clips, tmp_path):
    rows = [rl_row(clips["quick"], i) for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours, theirs = (load(tmp_path / "rows.jsonl", cls=cls) for cls in (P2RDataset, RLHFDataset))
    assert [row["reward_model"] for row in ours] == [row["reward_model"] for row in theirs]
    assert [row["extra_info"] for row in ours] == [row["extra_info"] for row in theirs]


def test_images_stored_in_parquet_load_like_verl(load, clips, tmp_path):
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


def test_files_with_incompatible_columns_are_named(load, clips, tmp_path):
    rows = [[rl_row(clips["quick"], 0, note="a")], [rl_row(clips["quick"], 1, note=[1])]]
    with pytest.raises(ValueError, match=r"rl0\.parquet, .*rl1\.parquet: their columns do not fit together"):
        load(*rows)


def test_rl_files_with_different_media_shapes_are_read_together(load, clips):
    rows = [[rl_row(clips["quick"], 0)], [rl_row("", 1, videos=[str(clips["quick"])])]]
    assert len(load(*rows)) == 2


def test_user_prompt_template_is_applied_to_records(load, clips, tmp_path):
    (tmp_path / "records.json").write_text(json.dumps([record(str(clips["quick"]))]))
    (tmp_path / "mine.txt").write_text("Look, then answer: {question}")
    dataset = load(tmp_path / "records.json", p2r={"prompt_template": str(tmp_path / "mine.txt")})
    assert dataset[0]["raw_prompt"][0]["content"][1]["text"] == "Look, then answer: How many? "
    with pytest.raises(ValueError, match=r"prompt template 'nowhere\.txt' cannot be read"):
        load(tmp_path / "records.json", p2r={"prompt_template": "nowhere.txt"})


def test_unsupported_data_file_extension_is_refused(load, tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"rows\.csv: cannot be read: give a file ending in \.parquet, \.json,"):
        load(tmp_path / "rows.csv")
