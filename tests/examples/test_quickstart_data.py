# SPDX-License-Identifier: Apache-2.0
"""The quickstart's data and model: splits, rows, reproducibility, and an ordinary model folder."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from quickstart_data import LEVELS, NUMBERS, RESPONSE, decode, draws, load, make_data, rows, task

from data_tools.records.files import files_of
from data_tools.steps.judge import JudgeStepSettings, judge
from data_tools.steps.verify import verify
from verl_p2r.data.prompt_template import PromptTemplate


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "data"
    assert make_data.make(make_data.parse_args([str(out), *NUMBERS]))
    return out


def test_every_clip_is_a_readable_mp4_close_to_its_scene(data):
    videos = sorted((data / "videos").iterdir())
    assert len(videos) == 24 + 8 + 24 + 24
    for path in videos:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", task.SIDE, task.SIDE)
            assert stream.average_rate == task.RATE
    scenes = make_data.scenes(0, task.EASY, "rl_val", 24)
    for i, (_, _, scene) in enumerate(scenes):
        decoded, drawn = decode(data / f"videos/rl_val_{i:05d}.mp4"), task.render(scene)
        assert decoded.shape == drawn.shape == (task.FRAMES, task.SIDE, task.SIDE, 3)
        assert np.abs(decoded.astype(int) - drawn).mean() < 4, "of 255: compression only"


def test_splits_share_no_clip_and_no_frame(data):
    frames: dict[str, set[str]] = {split: set() for split in task.SPLITS}
    for path in (data / "videos").iterdir():
        split = path.stem.rsplit("_", 1)[0]
        frames[split] |= {hashlib.sha256(frame.tobytes()).hexdigest() for frame in decode(path)}
    for one, other in itertools.combinations(task.SPLITS, 2):
        assert not frames[one] & frames[other], (one, other)


@pytest.mark.parametrize("level", LEVELS)
def test_scenes_are_disjoint_at_full_size(level):
    seen: dict = {}
    for split, number in zip(task.SPLITS, (288, 32, 384, 160), strict=True):
        for _, _, scene in make_data.scenes(0, LEVELS[level], split, number):
            frames = hashlib.sha256(task.render(scene).tobytes()).hexdigest()
            assert frames not in seen, (split, seen.get(frames))
            seen[frames] = split


def records(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "records" / f"{split}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("split", task.SPLITS)
def test_every_quickstart_record_becomes_row_at_same_index(data, split):
    # The prompt and the element are written out by hand: what the tiny model learns must not change with the tools.
    table = rows(data, split)
    for i, (record, row) in enumerate(zip(records(data, split), table, strict=True)):
        letters = [f"{letter}. {option}" for letter, option in zip("ABCDEF", record["options"], strict=False)]
        stem, *shown = record["problem"].split("\n")
        assert (stem[-1], shown) == ("?", letters)
        prompt = {"role": "user", "content": f"<video>{record['problem']}\nObserve, think, then answer."}
        response = [{"role": "assistant", "content": record["output"]}] if split.startswith("sft") else []
        assert row["messages" if response else "prompt"] == [prompt, *response]
        (video,) = row["videos"]
        path = str(data / "videos" / Path(record["path"]).name)
        media = {"fps": 2.0, "resized_height": 112, "resized_width": 112}
        assert {name: value for name, value in video.items() if value is not None} == {"video": path, **media}
        assert (
            row["extra_info"].items()
            >= {
                "index": i,
                "question": record["problem"],
                "options": record["options"],
                "facts": record["facts"],
                "split": split.split("_")[1],
            }.items()
        )
    assert len({record["problem_id"] for record in records(data, split)}) == len(table)


def test_data_tools_remove_noisy_quickstart_records(data, tmp_path):
    """A response stays whose answer is right; then, whose observation states the facts: what the paper's steps do."""
    clean = records(data, "sft_val")
    noisy = records(data, "sft_train")
    right = [r for r in noisy if r["output"].endswith(r["solution"])]
    sound = [
        r
        for r in right
        if all(f" {fact['state']}" in r["output"].replace(">", "> ").split("</obs")[0] for fact in r["facts"])
    ]
    assert 0 < len(sound) < len(right) < len(noisy)
    for split, verified, judged in (("sft_val", clean, clean), ("sft_train", right, sound)):
        out = tmp_path / split
        assert verify([data / f"records/{split}.jsonl"], out / "2").written == len(verified)
        report = judge(files_of([out / "2"]), out / "3", JudgeStepSettings("facts"))
        assert (report.read, report.written) == (len(verified), len(judged))
        kept = [json.loads(line)["problem_id"] for file in files_of([out / "3"]) for line in file.open()]
        assert kept == [record["problem_id"] for record in judged]


def test_sft_rows_have_one_video_and_well_formed_response(data):
    train = rows(data, "sft_train")
    assert len(train) == 24 * 3
    for row in train + rows(data, "sft_val"):
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert user["content"].startswith("<video>")
        assert user["content"].count("<video>") == len(row["videos"]) == 1
        assert RESPONSE.fullmatch(assistant["content"])
        check_media(row["videos"])


def check_media(videos: list[dict]) -> None:
    (video,) = videos
    assert Path(video["video"]).is_absolute()
    assert Path(video["video"]).is_file()
    assert video["fps"] == 2.0
    assert (video["resized_height"], video["resized_width"]) == (task.SIDE, task.SIDE)


@pytest.mark.parametrize("split", ["rl_train", "rl_val"])
def test_rl_rows_are_clean_and_balanced(data, split):
    table = rows(data, split)
    scenes = list(make_data.scenes(0, task.EASY, split, 24))
    assert Counter(row["data_source"] for row in table) == {f"toy_motion/{kind}": 6 for kind in task.KINDS}
    for i, (row, (_, kind, scene)) in enumerate(zip(table, scenes, strict=True)):
        check_media(row["videos"])
        extra, values = row["extra_info"], task.true_values(scene)
        (turn,) = row["prompt"]
        assert turn["content"].startswith("<video>" + extra["question"])
        assert extra["index"] == i
        assert extra["facts"] == task.facts(task.EASY, values)
        assert extra["problem_type"] == ("numerical" if kind == "count" else "multiple choice")
        assert bool(extra["options"]) == (kind != "count")
        answer = row["reward_model"]["ground_truth"].removeprefix("<answer>").removesuffix("</answer>")
        if kind == "count":
            assert int(answer) == 4 * len(scene.tiles)
        elif kind == "colour":
            assert extra["options"][ord(answer) - 65] == scene.colours[0]
        elif kind == "direction":
            assert extra["options"][ord(answer) - 65] == task.ORIGIN[scene.direction]
        else:
            assert extra["options"][ord(answer) - 65] in scene.colours


def test_same_seed_gives_identical_data_and_other_seed_differs(data, tmp_path):
    make_data.make(make_data.parse_args([str(tmp_path / "a"), *NUMBERS]))
    make_data.make(make_data.parse_args([str(tmp_path / "b"), *NUMBERS, "--seed", "1"]))
    for split in task.SPLITS:
        text = json.dumps(rows(data, split))
        assert json.dumps(rows(tmp_path / "a", split)) == text.replace(str(data), str(tmp_path / "a"))
        assert json.dumps(rows(tmp_path / "b", split)) != text.replace(str(data), str(tmp_path / "b"))
    for path in (data / "videos").iterdir():
        assert path.read_bytes() == (tmp_path / "a/videos" / path.name).read_bytes()


def test_rerun_keeps_data_unless_arguments_change(tmp_path):
    out = tmp_path / "data"
    few = ["--sft-videos", "4", "--sft-val", "4", "--rl", "4", "--val", "4"]
    assert make_data.make(make_data.parse_args([str(out), *few]))
    before = (out / "rl_val.parquet").stat().st_mtime_ns
    assert not make_data.make(make_data.parse_args([str(out), *few]))
    assert (out / "rl_val.parquet").stat().st_mtime_ns == before
    assert make_data.make(make_data.parse_args([str(out), *few, "--hard"]))
    assert json.loads((out / "manifest.json").read_text())["hard"] is True
    assert not (tmp_path / "data.partial").exists()


def test_interrupted_data_run_leaves_no_finished_output(tmp_path, monkeypatch):
    out = tmp_path / "data"
    few = ["--sft-videos", "4", "--sft-val", "4", "--rl", "4", "--val", "4"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_data, "to_parquet", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        make_data.make(make_data.parse_args([str(out), *few]))
    assert not out.exists()
    assert make_data.make(make_data.parse_args([str(out), *few]))
    assert len(rows(out, "rl_val")) == 4


def test_rejected_record_stops_data_script(tmp_path, monkeypatch):
    monkeypatch.setitem(make_data.MEDIA, "fps", -1)
    few = ["--sft-videos", "1", "--sft-val", "1", "--rl", "1", "--val", "1"]
    with pytest.raises(RuntimeError, match=r"records/sft_train\.jsonl: 6 of 6 are rejected: .*media\.fps is -1"):
        make_data.make(make_data.parse_args([str(tmp_path / "data"), *few]))
    assert not (tmp_path / "data").exists()


def test_folder_without_manifest_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SystemExit, match=r"no manifest\.json"):
        make_data.make(make_data.parse_args([str(tmp_path)]))
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("argument", ["--sft-videos", "--rows-per-video", "--sft-val", "--rl", "--val"])
def test_counts_below_one_are_refused(argument, tmp_path, capsys):
    with pytest.raises(SystemExit):
        make_data.parse_args([str(tmp_path), argument, "0"])
    assert argument in capsys.readouterr().err


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model = load("make_model")
    assert make_model.make(folder, 0)
    assert not make_model.make(folder, 0)
    return folder


def test_model_is_an_ordinary_qwen2_5_vl_folder(model_folder):
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    config, processor = AutoConfig.from_pretrained(model_folder), AutoProcessor.from_pretrained(model_folder)
    assert config.model_type == "qwen2_5_vl"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert config.text_config.vocab_size == len(processor.tokenizer)
    model, loading = AutoModelForImageTextToText.from_pretrained(model_folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"


def test_quickstart_words_are_single_tokens_and_prompts_fit_limit(model_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    shapes = ("square", "squares")
    for word in (*task.NUMBERS, *(" " + word for word in (*task.RGB, *task.STEPS, *task.SIDES, *shapes))):
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1, word
    for level in (task.EASY, task.HARD):  # the levels whose text the tokenizer was trained on
        for rng, kind, scene in draws(level, 80):
            question, values = task.ask(rng, level, kind), task.true_values(scene)
            text = task.response(question, values)
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert 20 <= len(ids) <= 34, text
            assert tokenizer.decode(ids) == text
            text = PromptTemplate.load(str(make_data.PROMPT)).render(question.text, question.problem_type)
            turn = {"role": "user", "content": f"<video>{text}"}
            prompt = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
            assert len(tokenizer.encode(prompt, add_special_tokens=False)) + 32 <= 128


def test_processor_keeps_the_frame_size_and_gives_32_tokens(model_folder, data):
    import torch
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model_folder)
    frames = torch.from_numpy(decode(data / "videos/rl_val_00000.mp4")[[0, 2, 5, 7]]).permute(0, 3, 1, 2)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What colour?"}]}],
        add_generation_prompt=True,
    )
    batch = processor(text=[text], videos=[frames], return_tensors="pt", do_sample_frames=False)
    assert batch["video_grid_thw"].tolist() == [[2, 8, 8]]  # 112 / 14 a side: nothing was enlarged
    video = processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert (batch["input_ids"] == video).sum() == 32
