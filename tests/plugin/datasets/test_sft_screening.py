# SPDX-License-Identifier: Apache-2.0
"""Bad rows of SFT are left out, named, and counted by reason."""

import json

import numpy as np
import pytest
from omegaconf import OmegaConf
from qwen_vl_utils import vision_process
from sft_rows import NOWHERE, SIZE, ask, loader, roles, split, text_row, video_row

from verl_p2r.plugin.datasets import sft_dataset
from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset


@pytest.fixture
def load(tmp_path, processor):
    return loader(tmp_path, processor)


BAD = {
    "no-response": (roles("user"), "roles", "roles ['user']: it must end with its only assistant message"),
    "user-last": (roles("user", "assistant", "user"), "roles", "it must end with its only assistant message"),
    "two-responses": (roles("user", "assistant", "user", "assistant"), "roles", "must end with its only assistant"),
    "empty-response": (text_row(" \n"), "no response", "field messages holds nothing to learn"),
    "too-long": (text_row("left " * 600), "over-long", "are more than data.max_length=500: raise it, take"),
    "missing-video": (ask("<video>?"), "placeholders", "holds 1 <video> but the row has 0 of them in videos"),
    "one-missing": (ask("<video><video>", videos=NOWHERE), "placeholders", "holds 2 <video> but the row has 1"),
    "no-placeholder": (ask("?", videos=NOWHERE), "placeholders", "holds 0 <video> but the row has 1"),
    "missing-file": (ask("<video>?", videos=NOWHERE), "missing file", "/nowhere/a.mp4: no such file"),
    "missing-image": (ask("<image>?", images=[{"image": "/nowhere/a.png"}]), "missing file", "/nowhere/a.png"),
    "image-as-video": (ask("<video>?", videos=[{"video": __file__}]), "unreadable file", f"{__file__}: cannot be"),
    "end-inside": (text_row("a<|im_end|>b"), "special tokens", "the special token <|im_end|> in it"),
    "header": (text_row("<|im_start|>assistant\nleft"), "special tokens", "the special token <|im_start|>"),
    "only-an-end": (text_row("<|im_end|>\n"), "no response", "holds nothing to learn"),
    # The processor would take it for a medium, and the trainer for one without features.
    "placeholder-in-response": (ask("?", "see <|video_pad|>"), "special tokens", "the special token <|video_pad|>"),
    "placeholder-in-question": (ask("<|image_pad|>?"), "placeholders", "holds 1 <|image_pad|>"),
}


@pytest.mark.parametrize(("row", "reason", "message"), BAD.values(), ids=list(BAD))
def test_bad_sft_row_is_dropped_and_listed(load, tmp_path, capsys, row, reason, message):
    files = [[text_row()] * 3, [text_row(), row], [text_row("right")]]
    dataset = load(*files, p2r={"max_reject_share": 0.5, "rejects_dir": str(tmp_path)})
    assert len(dataset) == 5
    assert split(dataset[4])[1] == split(load([text_row("right")])[0])[1]  # the rows behind it move up
    (listed,) = map(json.loads, (tmp_path / "rejected_sft_train.jsonl").read_text().splitlines())
    assert (listed["file"], listed["row"], listed["reason"]) == (f"{tmp_path}/sft1.parquet", 1, reason)
    assert message in listed["message"]
    assert f"1 of 6 rows rejected ({reason} 1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "answered", "message"),
    [
        ({"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "left"}, "holds audio where only text, image"),
        ({"type": "text", "text": "?"}, {"type": "image", "image": "/a.png"}, "holds image where only text can be"),
    ],
)
def test_unsupported_content_parts_are_refused(load, capsys, asked, answered, message):
    row = {"messages": [{"role": "user", "content": [asked]}, {"role": "assistant", "content": [answered]}]}
    assert len(load([row], [text_row()], p2r={"max_reject_share": 0.5})) == 1
    shown = capsys.readouterr().out
    assert "1 of 2 rows rejected (wrong columns 1)" in shown
    assert message in shown


def test_too_many_bad_rows_stop_the_run(load):
    rows = [text_row()] * 97 + [roles("user"), text_row("left " * 600), roles("user")]
    with pytest.raises(ValueError, match=r"3 of 100 rows rejected \(roles 2, over-long 1\)") as caught:
        load(rows, p2r={"max_reject_share": 0.02})
    assert "data.p2r.max_reject_share=0.02" in str(caught.value)
    assert len(load(rows, p2r={"max_reject_share": 0.03})) == 97


def test_sft_length_counts_prompt_media_and_response(load, clips, processor):
    row = video_row(clips)
    length = len(load([row])[0]["input_ids"])
    assert len(load([row], max_length=length)) == 1
    with pytest.raises(ValueError, match=f"its {length} tokens, 32 of them media, .* data.max_length={length - 1}"):
        load([row], max_length=length - 1)


def test_screening_decodes_nothing_and_result_is_cached(load, clips, tmp_path, monkeypatch):
    rows = [video_row(clips), text_row(), roles("user")]
    for reader in ("fetch_video", "fetch_image"):
        monkeypatch.setattr(vision_process, reader, None)
    template = tmp_path / "template.txt"
    template.write_text("{question}")
    settings = {"max_reject_share": 0.5, "screen_cache": str(tmp_path / "screenings"), "prompt_template": str(template)}
    first = load(rows, p2r=settings)
    monkeypatch.setattr(sft_dataset, "screen", None)

    def again(**config):
        config = OmegaConf.create({"pad_mode": "no_padding", "p2r": settings, "max_length": 500, **config})
        return P2RSFTDataset(first.parquet_files, first.tokenizer, config, processor=first.processor)

    assert len(first) == len(again()) == 2
    with pytest.raises(TypeError):  # another setting, another screening
        again(max_length=501)
    template.write_text("{question} Think.")
    with pytest.raises(TypeError):  # another prompt
        again()


def test_a_file_that_disappears_after_screening_is_named(load, make_clip):
    clip = make_clip(8, 2)
    dataset = load([text_row()], [text_row(), ask("<video>?", videos=[{"video": str(clip), **SIZE}])])
    clip.unlink()
    with pytest.raises(ValueError, match=rf"sft1.parquet row 1: {clip}: no such file"):
        dataset[2]


@pytest.mark.parametrize("shuffle", [False, True])
def test_sft_rows_drawn_by_max_samples_keep_row_numbers(load, tmp_path, shuffle):
    files = [[roles("user", f"role-{f}-{i}") for i in range(4)] + [text_row()] for f in range(2)]
    listing = {"max_reject_share": 0.95, "rejects_dir": str(tmp_path)}
    dataset = load(*files, max_samples=9, shuffle=shuffle, seed=0, p2r=listing)
    rejects = [json.loads(line) for line in (tmp_path / "rejected_sft_train.jsonl").read_text().splitlines()]
    assert len(dataset) + len(rejects) == 9
    for reject in rejects:
        file, row = reject["message"].split("role-")[1].split("'")[0].split("-")
        assert (reject["file"], reject["row"]) == (f"{tmp_path}/sft{file}.parquet", int(row))
    drawn = np.random.default_rng(0).choice(10, size=9, replace=False) if shuffle else range(9)  # as verl draws
    assert [reject["position"] for reject in rejects] == [i for i, row in enumerate(drawn) if row % 5 != 4]


def test_validation_rejects_have_their_own_list(load, tmp_path):
    first = load([text_row(), roles("user")], p2r={"max_reject_share": 1.0})
    settings = {"max_reject_share": 0.5, "rejects_dir": str(tmp_path)}
    config = OmegaConf.create(
        {"pad_mode": "no_padding", "p2r": settings, "train_files": ["a.parquet"], "val_files": first.parquet_files}
    )
    P2RSFTDataset(config.val_files, first.tokenizer, config, processor=first.processor)
    assert len((tmp_path / "rejected_sft_val.jsonl").read_text().splitlines()) == 1
