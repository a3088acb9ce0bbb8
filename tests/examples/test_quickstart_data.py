# SPDX-License-Identifier: Apache-2.0
"""The quickstart's task, data and model: facts against pixels, disjoint splits, noise rates, columns, reuse."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from paths import QUICKSTART

from data_tools.records.files import files_of
from data_tools.steps.judge import JudgeSettings, judge
from data_tools.steps.verify import verify
from verl_p2r.data.prompt_template import PromptTemplate


def load(name: str):
    """Import one of the example's modules, which are no package."""
    sys.path.insert(0, str(QUICKSTART))
    try:
        spec = importlib.util.spec_from_file_location(name, QUICKSTART / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(name, module)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(QUICKSTART))


task = load("task")
make_data = load("make_data")
VARIED = dataclasses.replace(task.HARD, shapes=tuple(task.CORNERS), asked=("first", "last"), permute=True)
LEVELS = {"easy": task.EASY, "hard": task.HARD, "varied": VARIED}
RESPONSE = re.compile(r"<observation>([^<>]+)</observation><think>([^<>]+)</think><answer>([^<>]+)</answer>")


def draws(level: task.Level, number: int, split: str = "rl_train"):
    """Seeded (rng, kind, scene), kinds in turn."""
    for i in range(number):
        rng = random.Random(f"test/{i}")
        kind = task.KINDS[i % 4]
        yield rng, kind, task.sample_scene(rng, level, split, rng.choice(task.families(kind)))


def pixels_of(frame: np.ndarray, colour: str) -> np.ndarray:
    """Row and column numbers of a colour's pixels."""
    return np.argwhere((frame == task.RGB[colour]).all(-1))


# --- the task --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_pixels_show_the_stated_facts(level):
    for _, _, scene in draws(LEVELS[level], 200):
        frames, values = task.render(scene), task.true_values(scene)
        first, last = frames[0], frames[-1]
        start, end = pixels_of(first, scene.colours[0]).mean(0), pixels_of(last, scene.colours[-1]).mean(0)
        dx, dy = task.STEPS[scene.direction]
        moved = end - start
        assert np.sign(np.round(moved)).tolist() == [dy, dx]
        area = len(pixels_of(first, scene.colours[0]))
        assert area == len(scene.tiles) * area_of(scene)
        assert {colour for colour in task.RGB if len(pixels_of(first, colour))} == {scene.colours[0]}
        assert {colour for colour in task.RGB if len(pixels_of(last, colour))} == {scene.colours[-1]}
        assert values.get("number", "one") == task.NUMBERS[len(scene.tiles) - 1]
        assert values.get("direction", scene.direction) == scene.direction
        assert values.get("then", scene.colours[-1]) == scene.colours[-1]


def area_of(scene) -> int:
    """Pixels of one shape, counted row by row: the slow reference."""
    if scene.shape == "square":
        return scene.size**2
    return sum(abs(2 * c + 1 - scene.size) <= r + 1 for r in range(scene.size) for c in range(scene.size))


def test_a_change_falls_between_the_sampled_frames():
    # 8 frames sampled at linspace(0, 7, 4) -> 0, 2, 5, 7: two frames a temporal patch, one colour each.
    scene = next(s for _, kind, s in draws(task.EASY, 8) if kind == "order")
    frames = task.render(scene)
    for i, colour in zip((0, 2, 5, 7), (0, 0, 1, 1), strict=True):
        assert len(pixels_of(frames[i], scene.colours[colour]))


@pytest.mark.parametrize(
    ("kind", "variant", "values", "answer"),
    [
        ("colour", "", {"colour": "blue", "shape": "square", "direction": "up"}, "C"),
        ("direction", "", {"colour": "blue", "shape": "square", "direction": "left"}, "B"),  # from the right
        ("direction", "", {"colour": "blue", "shape": "square", "direction": "down"}, "C"),  # from the top
        ("order", "first", {"first": "yellow", "then": "red"}, "D"),
        ("order", "last", {"first": "yellow", "then": "red"}, "A"),
        ("count", "", {"number": "three", "colour": "red", "shape": "square"}, "12"),
        ("count", "", {"number": "three", "colour": "red", "shape": "triangle"}, "9"),
    ],
)
def test_solve_by_hand(kind, variant, values, answer):
    question = dataclasses.replace(task.ask(random.Random(0), task.EASY, kind), variant=variant)
    assert task.solve(question, values)[1] == answer
    observation, thought, given = RESPONSE.fullmatch(task.response(question, values)).groups()
    assert given == answer
    assert task.observe(values) == observation
    assert thought


@pytest.mark.parametrize("level", LEVELS)
def test_facts_accept_the_truth_and_only_the_truth(level):
    for _, _, scene in draws(LEVELS[level], 80):
        values = task.true_values(scene)
        facts = task.facts(LEVELS[level], values)
        truth = f" {task.observe(values)} "
        assert all(f" {fact['state']} " in truth for fact in facts)
        assert not any(f" {other} " in truth for fact in facts for other in fact["not"])
        for fact, value in values.items():
            for other in task.pool(LEVELS[level], fact):
                if other != value:
                    lie = f" {task.observe({**values, fact: other})} "
                    assert not all(f" {fact['state']} " in lie for fact in facts), lie


def test_permuted_options_still_lead_to_the_answer():
    orders = set()
    for rng, kind, scene in draws(VARIED, 80):
        question, values = task.ask(rng, VARIED, kind), task.true_values(scene)
        orders.add(question.options)
        thought, answer = task.solve(question, values)
        if question.options:
            assert thought.split()[-1] == question.options[ord(answer) - 65]
            assert f"{answer}. {thought.split()[-1]}" in question.text.splitlines()
    assert len(orders) > 20


def test_noise_has_the_rates_of_the_level():
    counts: Counter = Counter()
    for rng, kind, scene in draws(task.EASY, 8000):
        question, values = task.ask(rng, task.EASY, kind), task.true_values(scene)
        text = task.noisy_response(rng, task.EASY, question, values)
        observation, thought, answer = RESPONSE.fullmatch(text).groups()
        stated = next(
            v
            for combination in itertools.product(*(task.pool(task.EASY, fact) for fact in values))
            if task.observe(v := dict(zip(values, combination, strict=True))) == observation
        )
        assert stated.get("first", 0) != stated.get("then", 1)
        expected = task.solve(question, stated)
        assert thought == expected[0], "the thought follows what is stated, wrong or not"
        slips = {
            fact: (values[fact], stated[fact], task.HABITS)
            for fact in ("colour", "direction", "number")
            if fact in values
        }
        slips["answer"] = (expected[1], answer, task.ANSWER_HABITS)
        for name, (right, given, habits) in slips.items():
            if right in habits:
                counts[f"{name} by habit", given == habits[right]] += 1
            else:
                counts[name, given != right] += 1

    def rate(name: str) -> float:
        return counts[name, True] / (counts[name, True] + counts[name, False])

    # 1,200 draws or more each: three standard deviations are at most 0.035.
    assert rate("answer") == pytest.approx(task.EASY.answer_noise, abs=0.035)
    assert rate("colour") == pytest.approx(task.EASY.colour_noise, abs=0.035)
    assert rate("direction") == pytest.approx(task.EASY.fact_noise, abs=0.035)
    assert rate("number") == pytest.approx(task.EASY.fact_noise, abs=0.035)
    # 400 draws or more: what the habit leaves may fall on the same value by chance, one in three of the noise.
    for name, noise in (("answer", "answer"), ("colour", "colour"), ("direction", "fact"), ("number", "fact")):
        by_chance = (1 - task.EASY.habit) * getattr(task.EASY, f"{noise}_noise") / 3
        assert rate(f"{name} by habit") == pytest.approx(task.EASY.habit + by_chance, abs=0.075)


# --- the files -------------------------------------------------------------------------------------------------------

NUMBERS = ["--sft-videos", "24", "--rows-per-video", "3", "--sft-val", "8", "--rl", "24", "--val", "24"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "data"
    assert make_data.make(make_data.parse_args([str(out), *NUMBERS]))
    return out


def rows(folder: Path, split: str) -> list[dict]:
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def decode(path: str | Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


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
def test_every_record_becomes_a_row_in_its_place(data, split):
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


def test_the_tools_find_the_noise_in_the_records(data, tmp_path):
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
        report = judge(files_of([out / "2"]), out / "3", JudgeSettings("facts"))
        assert (report.read, report.written) == (len(verified), len(judged))
        kept = [json.loads(line)["problem_id"] for file in files_of([out / "3"]) for line in file.open()]
        assert kept == [record["problem_id"] for record in judged]


def test_sft_rows(data):
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


def test_same_seed_same_bytes_other_seed_other_data(data, tmp_path):
    make_data.make(make_data.parse_args([str(tmp_path / "a"), *NUMBERS]))
    make_data.make(make_data.parse_args([str(tmp_path / "b"), *NUMBERS, "--seed", "1"]))
    for split in task.SPLITS:
        text = json.dumps(rows(data, split))
        assert json.dumps(rows(tmp_path / "a", split)) == text.replace(str(data), str(tmp_path / "a"))
        assert json.dumps(rows(tmp_path / "b", split)) != text.replace(str(data), str(tmp_path / "b"))
    for path in (data / "videos").iterdir():
        assert path.read_bytes() == (tmp_path / "a/videos" / path.name).read_bytes()


def test_second_run_keeps_and_other_arguments_replace(tmp_path):
    out = tmp_path / "data"
    few = ["--sft-videos", "4", "--sft-val", "4", "--rl", "4", "--val", "4"]
    assert make_data.make(make_data.parse_args([str(out), *few]))
    before = (out / "rl_val.parquet").stat().st_mtime_ns
    assert not make_data.make(make_data.parse_args([str(out), *few]))
    assert (out / "rl_val.parquet").stat().st_mtime_ns == before
    assert make_data.make(make_data.parse_args([str(out), *few, "--hard"]))
    assert json.loads((out / "manifest.json").read_text())["hard"] is True
    assert not (tmp_path / "data.partial").exists()


def test_interrupted_run_leaves_nothing_that_counts_as_done(tmp_path, monkeypatch):
    out = tmp_path / "data"
    few = ["--sft-videos", "4", "--sft-val", "4", "--rl", "4", "--val", "4"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_data, "to_parquet", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        make_data.make(make_data.parse_args([str(out), *few]))
    assert not out.exists()
    assert make_data.make(make_data.parse_args([str(out), *few]))
    assert len(rows(out, "rl_val")) == 4


def test_a_record_that_the_tools_refuse_stops_the_script(tmp_path, monkeypatch):
    monkeypatch.setitem(make_data.MEDIA, "fps", -1)
    few = ["--sft-videos", "1", "--sft-val", "1", "--rl", "1", "--val", "1"]
    with pytest.raises(RuntimeError, match=r"records/sft_train\.jsonl: 6 of 6 are rejected: .*media\.fps is -1"):
        make_data.make(make_data.parse_args([str(tmp_path / "data"), *few]))
    assert not (tmp_path / "data").exists()


def test_a_folder_of_someone_else_is_refused(tmp_path):
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


def test_words_are_single_tokens_and_prompts_are_short(model_folder):
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
