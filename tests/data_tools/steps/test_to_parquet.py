# SPDX-License-Identifier: Apache-2.0
"""Exports: the datasets that train on them load them, no medium is in both splits, every record is accounted for."""

import gzip
import hashlib
import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from paths import ROOT
from PIL import Image
from release_files import lines_of, release_record, stringified, write_lines

from data_tools.records.folders import whole_folder
from data_tools.steps import to_parquet as module
from data_tools.steps.to_parquet import ExportSettings, to_parquet
from verl_p2r.data.fields import MEDIA_FIELDS
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record
from verl_p2r.data.rows import Row
from verl_p2r.judge.facts import Fact


def rows_of(folder, *splits: str) -> list[dict]:
    return [row for split in splits or ("train",) for row in pq.read_table(folder / f"{split}.parquet").to_pylist()]


def test_exported_rl_row_has_verl_columns(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [stringified(release_record(7))])
    report = to_parquet([path], tmp_path / "out", "rl", ExportSettings(val_share=0))
    assert (report.read, report.written, report.rejected, report.failed) == (1, 1, 0, False)
    question = 'Which ball moves first?Options:\nA. the red one\nB. it\'s the "blue" one\n'
    prompt = PromptTemplate.load("process_aware").render(question, "multiple choice")
    [row] = rows_of(tmp_path / "out")
    assert row == {
        "data_source": "STAR",
        "prompt": [{"role": "user", "content": f"<video>{prompt}"}],
        "images": None,
        "videos": [{"video": "STAR/Charades_v1_480/7ab.mp4"} | dict.fromkeys(MEDIA_FIELDS["video"])],
        "reward_model": {"style": "rule", "ground_truth": "<answer>A</answer>"},
        "extra_info": {
            "index": 0,
            "question": question,
            "options": ["A. the red one", 'B. it\'s the "blue" one'],
            "problem_type": "multiple choice",
            "problem_id": "7",
            "facts": None,
            "split": "train",
            "extra": '{"clean_version": "2"}',
        },
    }
    assert Row.from_columns(row).name == "train row 0"


def test_an_sft_row_has_the_same_prompt_and_the_response(tmp_path):
    raw = release_record(7, data_type="image", path="./Chart/a.png")
    path = write_lines(tmp_path / "a.jsonl", [raw])
    for kind in ("sft", "rl"):
        to_parquet([path], tmp_path / kind, kind, ExportSettings(val_share=0, media_root="/data"))
    [sft], [rl] = rows_of(tmp_path / "sft"), rows_of(tmp_path / "rl")
    assert sft["messages"] == [*rl["prompt"], {"role": "assistant", "content": raw["output"]}]
    assert sft["images"] == [{"image": "/data/Chart/a.png"} | dict.fromkeys(MEDIA_FIELDS["image"])]
    assert sft["videos"] is None
    assert (rl["images"], rl["videos"]) == (sft["images"], None)
    assert sft["extra_info"] == rl["extra_info"]


@pytest.fixture
def media(tmp_path, make_clip):
    """A folder of media: a video, an image, a truncated video, a text for an image; and records about them."""
    root = tmp_path / "media" / "STAR"
    root.mkdir(parents=True)
    clip = make_clip(8, 2)
    (root / "good.mp4").write_bytes(clip.read_bytes())
    (root / "cut.mp4").write_bytes(clip.read_bytes()[:1500])
    Image.new("RGB", (112, 112), "red").save(root / "good.png")
    (root / "text.png").write_text("no image")
    cut = (root / "good.png").read_bytes()
    (root / "cut.png").write_bytes(cut[: len(cut) // 2])
    names = ("good.mp4", "gone.mp4", "good.png", "cut.mp4", "good.mp4", "text.png", "cut.png", "good.png", "gone.mp4")
    kinds = {".mp4": "video", ".png": "image"}
    records = [release_record(i, path=f"./STAR/{n}", data_type=kinds[n[-4:]]) for i, n in enumerate(names)]
    return tmp_path / "media", records


def test_training_datasets_load_exported_parquet(tmp_path, media, processor):
    from verl_p2r.plugin.datasets.rl_dataset import P2RDataset
    from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset

    root, records = media
    path = write_lines(tmp_path / "a.jsonl", [records[0], records[2]])
    for kind in ("sft", "rl"):
        to_parquet([path], tmp_path / kind, kind, ExportSettings(val_share=0))
    p2r = {"media_root": str(root), "max_reject_share": 0.0}
    config = {"pad_mode": "no_padding", "truncation": "error", "max_length": 4000, "p2r": p2r}
    files = [str(tmp_path / "sft" / "train.parquet")]
    sft = P2RSFTDataset(files, processor.tokenizer, OmegaConf.create(config), processor=processor)
    assert len(sft) == 2
    for i in range(2):
        learnt = sft[i]["input_ids"][sft[i]["loss_mask"].bool()]
        assert processor.tokenizer.decode(learnt) == records[0]["output"] + "<|im_end|>"
    assert set(sft[0]["multi_modal_inputs"]) >= {"video_grid_thw"}
    assert set(sft[1]["multi_modal_inputs"]) >= {"image_grid_thw"}

    config = {
        "cache_dir": str(tmp_path / "cache"),
        "filter_overlong_prompts": False,
        "return_raw_chat": True,
        "max_prompt_length": 4000,
        "p2r": p2r,
    }
    files = [str(tmp_path / "rl" / "train.parquet")]
    rl = P2RDataset(files, processor.tokenizer, OmegaConf.create(config), processor=processor)
    assert [row["index"] for row in rl] == [0, 1]
    video, text = rl[0]["raw_prompt"][0]["content"]
    assert video["video"] == str(root / "STAR" / "good.mp4")
    assert text["text"].startswith("Which ball moves first?Options:\nA. the red one\n")
    assert rl[1]["raw_prompt"][0]["content"][0]["image"] == str(root / "STAR" / "good.png")
    assert rl[1]["reward_model"]["ground_truth"] == "<answer>A</answer>"


def test_exported_rows_keep_media_rules_of_records(tmp_path, make_clip, processor):
    from verl_p2r.plugin.datasets import sft_dataset
    from verl_p2r.plugin.datasets.rl_dataset import P2RDataset

    clip = make_clip(40, 4)  # 10 s long
    Image.new("RGB", (448, 448), "red").save(clip.with_suffix(".png"))
    rules = [
        {},
        {"video_start": 5, "video_end": 7.5, "fps": 4},
        {"nframes": 6},
        {"fps": 1, **dict.fromkeys(("min_pixels", "max_pixels"), 140 * 140)},
    ]
    # By default 2 frames a second, at most 16; all but one of frames 20 to 30, because numbers are even; 6; 1 a second.
    counts = [16, 10, 6, 10]
    raws = [release_record(i, path=clip.name, media=own, facts=["red"]) for i, own in enumerate(rules)]
    raws.append(release_record(9, path=f"{clip.stem}.png", data_type="image", media={"max_pixels": 168 * 168}))
    records = write_lines(tmp_path / "a.jsonl", raws)
    for kind in ("sft", "rl"):
        to_parquet([records], tmp_path / kind, kind, ExportSettings(val_share=0, media_root=str(clip.parent)))
    p2r = {"max_reject_share": 0.0, "media_root": str(clip.parent)}
    config = {"return_raw_chat": True, "filter_overlong_prompts": False, "max_prompt_length": 9000, "p2r": p2r}
    config = OmegaConf.create({**config, "cache_dir": str(tmp_path / "cache")})
    for source in (tmp_path / "rl" / "train.parquet", records):  # the records as they are, too
        rl = P2RDataset([str(source)], processor.tokenizer, config, processor=processor)
        elements = [row["raw_prompt"][0]["content"][0] for row in rl]
        for element, own in zip(elements, rules, strict=False):
            assert element.items() >= own.items()
            assert None not in element.values()
            assert ("fps" in element) != ("nframes" in element)
        assert elements[4]["max_pixels"] == 168 * 168
        assert [Row.from_columns(row).facts for row in rl] == [(Fact("red"),)] * 4 + [None]

    config = OmegaConf.create({"pad_mode": "no_padding", "truncation": "error", "max_length": 9000, "p2r": p2r})
    sft = sft_dataset.P2RSFTDataset([str(tmp_path / "sft/train.parquet")], processor.tokenizer, config, processor)
    assert [2 * sft[i]["multi_modal_inputs"]["video_grid_thw"][0, 0].item() for i in range(4)] == counts
    # the messages that verl's own code tokenizes, for families that are not known here
    *videos, image = (sft._build_messages(sft._columns(i))[0]["content"][0] for i in range(5))
    videos = [part["video"] for part in videos]
    assert [len(video) for video in videos] == counts
    assert videos[3].shape[2:] == (140, 140)
    assert image["image"].size == (168, 168)


@pytest.mark.parametrize("workers", [1, 3])
def test_check_media_checks_video_part_of_each_record(tmp_path, make_clip, workers):
    clip = make_clip(40, 4)
    media = [{}, {"video_start": 5}, {"video_start": 12}, {"fps": 2, "nframes": 4}, {"video_start": 5}, {"nframes": 99}]
    path = write_lines(tmp_path / "a.jsonl", [release_record(i, path=clip.name, media=m) for i, m in enumerate(media)])
    settings = ExportSettings(0, str(clip.parent), check_media=True, workers=workers, max_reject_share=1)
    report = to_parquet([path], tmp_path / "out", "rl", settings)
    assert [row["extra_info"]["problem_id"] for row in rows_of(tmp_path / "out")] == ["0", "1", "4"]
    assert report.media == (5, 3)  # each part once
    rejects = lines_of(tmp_path / "out" / "rejects.jsonl")
    assert [(r["line"], r["field"], r["reason"]) for r in rejects] == [
        (n, "media", "sampling rules") for n in (3, 4, 6)
    ]
    assert f"field media: {clip}: its sampling rules cannot be met" in rejects[0]["message"]
    assert rejects[0]["message"].endswith(": correct it, or drop the record")


@pytest.mark.parametrize("workers", [1, 3])
def test_check_media_rejects_undecodable_media(tmp_path, media, workers):
    root, records = media
    path = write_lines(tmp_path / "a.jsonl", records)
    settings = ExportSettings(val_share=0, media_root=str(root), check_media=True, workers=workers, max_reject_share=1)
    report = to_parquet([path], tmp_path / "out", "rl", settings)
    kept = [row["extra_info"]["problem_id"] for row in rows_of(tmp_path / "out")]
    assert kept == ["0", "2", "4", "7"]  # in order
    assert report.media == (6, 4)  # each file once
    assert (report.rejected, report.reasons) == (5, {"unreadable file": 3, "missing file": 2})
    rejects = lines_of(tmp_path / "out" / "rejects.jsonl")
    assert [(r["line"], r["record"], r["field"], r["reason"]) for r in rejects] == [
        (2, "1", "path", "missing file"),
        (4, "3", "path", "unreadable file"),
        (6, "5", "path", "unreadable file"),
        (7, "6", "path", "unreadable file"),
        (9, "8", "path", "missing file"),
    ]
    assert str(root / "STAR" / "gone.mp4") in rejects[0]["message"]


def test_check_media_requires_media_root(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [release_record()])
    with pytest.raises(ValueError, match="give the media root too"):
        to_parquet([path], tmp_path / "out", "rl", ExportSettings(check_media=True))


def test_train_and_val_splits_share_no_medium(tmp_path):
    records = [release_record(i, path=f"./STAR/{i % 400}.mp4", problem=f"Why {i}?") for i in range(2000)]
    files = [write_lines(tmp_path / "a.jsonl", records), write_lines(tmp_path / "b.jsonl", records[::-1])]
    settings = ExportSettings(val_share=0.1)
    # The same media in another order, and as SFT: the same split.
    reports = [to_parquet(files[:1], tmp_path / "rl", "rl", settings)]
    reports += [to_parquet(files[1:], tmp_path / "sft", "sft", settings)]
    media = []
    for folder, report in zip(("rl", "sft"), reports, strict=True):
        train, val = ({r["videos"][0]["video"] for r in rows_of(tmp_path / folder, s)} for s in ("train", "val"))
        assert len(train) + len(val) == len(train | val) == 400
        # 40 of 400 are expected; three standard deviations of a binomial are 18.
        assert 22 <= len(val) <= 58
        assert report.splits == {"train": 5 * len(train), "val": 5 * len(val)}
        assert {r["extra_info"]["split"] for r in rows_of(tmp_path / folder, "val")} == {"val"}
        media.append(val)
    assert media[0] == media[1]
    indices = [row["extra_info"]["index"] for row in rows_of(tmp_path / "rl", "train", "val")]
    assert sorted(indices) == list(range(2000))


def test_val_share_1_exports_validation_only(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [release_record(i, path=f"{i}.mp4") for i in range(50)])
    assert to_parquet([path], tmp_path / "out", "rl", ExportSettings(val_share=1)).splits == {"val": 50}
    assert not (tmp_path / "out" / "train.parquet").exists()


def test_split_is_decided_by_hash_of_path(tmp_path):
    # By hand: the first eight bytes of BLAKE2b (of 8 bytes) as a number below 2^64 · share.
    for path in ("STAR/a.mp4", "Chart/1.png", "été.mp4"):
        share = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") / 2**64
        assert module.split_of(path, share * 0.999) == "train"
        assert module.split_of(path, min(share * 1.001, 0.9999999)) == "val"


def test_exporting_twice_gives_identical_files(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [release_record(i, path=f"{i}.mp4") for i in range(300)])
    digests = []
    for _ in range(2):
        to_parquet([path], tmp_path / "out", "sft", ExportSettings(val_share=0.2))
        files = sorted((tmp_path / "out").iterdir())
        digests.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert digests[0] == digests[1]
    assert list(digests[0]) == ["manifest.json", "train.parquet", "val.parquet"]


def test_row_groups_are_limited_in_rows_and_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GROUP_ROWS", 100)
    monkeypatch.setattr(module, "GROUP_CHARACTERS", 100_000)
    records = [release_record(i, problem="é" * (60_000 if i in (250, 251) else 10)) for i in range(450)]
    to_parquet([write_lines(tmp_path / "a.jsonl", records)], tmp_path / "out", "rl", ExportSettings(val_share=0))
    metadata = pq.read_metadata(tmp_path / "out" / "train.parquet")
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    # Full at 100 rows; the second long question brings the third group to more than 100,000 characters.
    assert groups == [100, 100, 52, 100, 98]


def test_the_manifest_accounts_for_every_record(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        [release_record(1), release_record(2, options="x"), release_record(3, output=None, process="")],
    )
    report = to_parquet([path], tmp_path / "out", "sft", ExportSettings(val_share=0, max_reject_share=0.5))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["inputs"] == [
        {"file": str(path), "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    ]
    assert (manifest["read"], manifest["written"]) == (3, 1)
    assert manifest["rejected"] == {"unreadable options": 1, "no response": 1}
    assert manifest["counts"] == {"video, multiple choice": 1}
    assert manifest["outputs"] == ["rejects.jsonl", "train.parquet"]
    assert manifest["failed"] is report.failed is True  # two of three are more than half
    lines = [(r["line"], r["field"], r["reason"]) for r in lines_of(tmp_path / "out" / "rejects.jsonl")]
    assert lines == [(2, "options", "unreadable options"), (3, "output", "no response")]


def test_symlink_leaving_media_root_is_not_exported(tmp_path, monkeypatch):
    (tmp_path / "private.mp4").write_bytes(b"")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.mp4").symlink_to(tmp_path / "private.mp4")
    path = write_lines(tmp_path / "a.jsonl", [release_record(path="link.mp4")])
    settings = ExportSettings(media_root=str(tmp_path / "root"), check_files=True, val_share=0)
    assert to_parquet([path], tmp_path / "out", "rl", settings).reasons == {"outside the media root": 1}
    monkeypatch.setenv("VERL_P2R_ALLOW_OUTSIDE_MEDIA_ROOT", "1")
    assert to_parquet([path], tmp_path / "out", "rl", settings).written == 1


@pytest.mark.parametrize(("share", "failed"), [(0.0, True), (0.24, True), (0.25, False), (1.0, False)])
def test_export_fails_above_max_reject_share(tmp_path, share, failed):
    path = write_lines(tmp_path / "a.jsonl", [release_record(i, options="x" if i == 2 else []) for i in range(4)])
    assert to_parquet([path], tmp_path / "out", "rl", ExportSettings(max_reject_share=share)).failed is failed


def test_damaged_input_file_fails_export_at_any_reject_limit(tmp_path):
    whole = gzip.compress(json.dumps([release_record(i) for i in range(300)]).encode())
    (tmp_path / "a.json.gz").write_bytes(whole[:-30])
    report = to_parquet([tmp_path / "a.json.gz"], tmp_path / "out", "rl", ExportSettings(max_reject_share=1))
    assert report.failed
    assert report.damaged
    assert report.written > 0


def test_export_of_empty_input_fails(tmp_path):
    assert to_parquet([write_lines(tmp_path / "a.jsonl", [])], tmp_path / "out", "rl").failed


@pytest.mark.parametrize(
    ("changes", "message"), [({"val_share": 1.1}, "val_share is 1.1"), ({"max_reject_share": -1}, "max_reject_share")]
)
def test_export_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ExportSettings(**changes)


def test_interrupted_step_keeps_old_output(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [release_record()])
    to_parquet([path], tmp_path / "out", "rl", ExportSettings(val_share=0))
    before = (tmp_path / "out" / "train.parquet").read_bytes()

    def interrupted(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_parquet([path], tmp_path / "out", "rl", on_bytes=interrupted)
    assert (tmp_path / "out" / "train.parquet").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_killed_step_keeps_old_output_and_next_run_cleans_up(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [release_record()])
    to_parquet([path], tmp_path / "out", "rl")
    script = (
        "import os, sys; from pathlib import Path; from data_tools.records.folders import whole_folder\n"
        f"with whole_folder(Path({str(tmp_path / 'out')!r})) as partial:\n"
        "    (partial / 'train.parquet').write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == -9
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert (tmp_path / ".out.partial").is_dir()
    to_parquet([path], tmp_path / "out", "rl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_step_killed_while_replacing_output_loses_nothing(tmp_path):
    out = tmp_path / "out"
    to_parquet([write_lines(tmp_path / "a.jsonl", [release_record()])], out, "rl", ExportSettings(val_share=0))
    before = (out / "train.parquet").read_bytes()
    script = (
        "import os; from pathlib import Path; from data_tools.records import folders\n"
        "rename = os.rename\n"
        "def once(*paths):\n"
        "    rename(*paths)\n"
        "    os.kill(os.getpid(), 9)\n"
        "folders.os.rename = once\n"
        f"with folders.whole_folder(Path({str(out)!r})) as partial:\n"
        "    (partial / 'train.parquet').write_text('new')"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == -9
    assert not out.exists()
    with pytest.raises(RuntimeError, match="no"), whole_folder(out):
        raise RuntimeError("no")
    assert (out / "train.parquet").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_folder_with_foreign_files_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    for name in ("mine", "file"):
        with pytest.raises(ValueError, match="holds something other than the output"), whole_folder(tmp_path / name):
            pass
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_unknown_record_fields_are_exported_in_extra(tmp_path):
    note = {"by": "é", "votes": [1, None]}
    path = write_lines(tmp_path / "a.jsonl", [release_record(note=note)])
    to_parquet([path], tmp_path / "out", "sft", ExportSettings(val_share=0))
    [row] = rows_of(tmp_path / "out")
    assert json.loads(row["extra_info"]["extra"]) == {"clean_version": 2, "note": note}
    assert Record.parse(release_record(note=note)).extra["note"] == note
