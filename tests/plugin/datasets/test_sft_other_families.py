# SPDX-License-Identifier: Apache-2.0
"""SFT rows of families that are not in the table: read and screened like all others, and tokenized by verl's code."""

import base64
import copy
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from sft_rows import RESPONSE, SIZE, ask, loader, split, text_row, video_row
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset


@pytest.fixture
def load(tmp_path, processor):
    """Return `load(rows, …)` with a processor whose family is not known; all else about it is the known one's."""

    class OtherProcessor(type(processor)):
        pass

    other = copy.copy(processor)
    other.__class__ = OtherProcessor
    return loader(tmp_path, other)


def png(picture: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def first_part(dataset: P2RSFTDataset, item: int = 0) -> dict:
    """The first part of a row's first message as verl's code receives it."""
    return dataset._build_messages(dataset.dataframe.iloc[item].to_dict())[0]["content"][0]


def test_rows_are_those_of_verl(load, clips, image_row, tmp_path):
    for row in (video_row(clips), image_row, text_row()):
        ours = load([row])
        config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 500})
        verls = MultiTurnSFTDataset([str(tmp_path / "sft0.parquet")], ours.tokenizer, config, ours.processor)
        row, expected = ours[0], verls[0]
        assert row.keys() == expected.keys()
        for name in ("input_ids", "loss_mask", "position_ids"):
            assert torch.equal(row[name], expected[name])
        for name, values in expected.get("multi_modal_inputs", {}).items():
            # Frames may differ by two of 255 levels (`media.decode.fetch_video`), which normalization multiplies by 4.
            torch.testing.assert_close(row["multi_modal_inputs"][name], values, rtol=0, atol=0.04)


def test_media_are_read_in_every_shape(load, tmp_path):
    picture = Image.effect_noise((112, 112), 60).convert("RGB")
    data = png(picture)
    (tmp_path / "a.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    media = [
        str(tmp_path / "a.png"),
        {"path": f"file://{tmp_path}/a.png", "bytes": None},
        {"bytes": data, "path": None},
        {"image": {"bytes": data, "path": None}},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    for medium in media:
        part = first_part(load([ask("<image>What?", images=[medium])]))
        assert np.array_equal(np.asarray(part["image"]), np.asarray(picture))
    inside = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    row = {"messages": json.dumps([{"role": "user", "content": inside}, {"role": "assistant", "content": "a"}])}
    assert np.array_equal(np.asarray(first_part(load([row]))["image"]), np.asarray(picture))


def test_a_photo_is_upright(load):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(Image.new("RGB", (168, 84)), exif=exif)
    assert first_part(load([ask("<image>What?", images=[{"bytes": data, "path": None}])]))["image"].size == (84, 168)


def test_bad_rows_are_left_out_and_the_others_stay(load, clips, image_row, tmp_path):
    half = png(Image.effect_noise((300, 200), 50))[:20_000]
    rows = [
        video_row(clips),
        ask("<image>What?", images=[{"bytes": half, "path": None}]),
        ask("<video>What?", videos=[{"video": str(tmp_path / "gone.mp4")}]),
        ask("<image>What?", images=[{"image": "http://localhost/a.png"}]),
        ask("What?", images=[{"image": image_row["images"][0]["image"]}]),
        {"messages": [{"role": "user", "content": "What?"}]},
        image_row,
    ]
    dataset = load(*([row] for row in rows), p2r={"max_reject_share": 0.9, "rejects_dir": str(tmp_path / "r")})
    assert len(dataset) == 2
    found = [json.loads(line) for line in (tmp_path / "r" / "rejected_sft_train.jsonl").read_text().splitlines()]
    assert [reject["reason"] for reject in found] == [
        "unreadable file",
        "missing file",
        "media behind a URL",
        "placeholders",
        "roles",
    ]
    assert [dataset[i]["loss_mask"].sum().item() > 0 for i in range(2)] == [True, True]


def test_a_medium_outside_the_root_is_refused(load, image_row, tmp_path):
    with pytest.raises(ValueError, match="outside the media root"):
        load([image_row], p2r={"media_root": str(tmp_path / "media"), "max_reject_share": 0.0})


def test_a_file_that_disappears_is_named(load, make_clip):
    clip = make_clip(20, 10)
    dataset = load([ask("<video>What?", videos=[{"video": str(clip), **SIZE}])])
    clip.unlink()
    with pytest.raises(ValueError, match=rf"sft0\.parquet row 0: .*{clip.name}"):
        dataset[0]


def test_json_lines_are_read(load, tmp_path, processor):
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + "\n".join(json.dumps(text_row(answer)) for answer in ("one", "two")), "utf-8")
    other = load([text_row()]).processor
    config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 500})
    for given in (other, None):
        dataset = P2RSFTDataset([str(path)], processor.tokenizer, config, given)
        learned = [processor.tokenizer.decode(split(dataset[i])[1]).strip() for i in range(2)]
        assert learned == ["one<|im_end|>", "two<|im_end|>"]


def test_every_answer_of_a_conversation_is_learned(load, processor):
    turns = [*text_row("one")["messages"], *text_row("two")["messages"]]
    _, learned = split(load([{"messages": turns}], ignore_input_ids_mismatch=True)[0])
    assert processor.tokenizer.decode(learned).count("<|im_end|>") == 2


def test_a_text_model_refuses_media_and_learns_texts(tmp_path, processor, image_row):
    pd.DataFrame([text_row(), image_row]).to_parquet(tmp_path / "sft.parquet")
    config = OmegaConf.create({"pad_mode": "no_padding", "max_length": 500, "p2r": {"max_reject_share": 0.5}})
    dataset = P2RSFTDataset([str(tmp_path / "sft.parquet")], processor.tokenizer, config)
    assert len(dataset) == 1
    assert processor.tokenizer.decode(split(dataset[0])[1]).startswith(RESPONSE)
    config.p2r.max_reject_share = 0.0
    with pytest.raises(ValueError, match=r"row 1: field images holds media, and the model has no processor"):
        P2RSFTDataset([str(tmp_path / "sft.parquet")], processor.tokenizer, config)
