# SPDX-License-Identifier: Apache-2.0
"""Small benchmarks in the exact formats that are published, irregular items included; no item is a real one.

Each maker writes a folder as a download leaves it. `counts` gives the number of items of each question type. Videos
are written on request: each shows a ball whose colour answers the choice questions about it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pipeline_records import NAMES, write_video

COLOURS = list(NAMES)
LETTERED = [f"{letter}. {name}" for letter, name in zip("ABC", COLOURS, strict=True)]


def colour_of(number: int) -> str:
    return COLOURS[number % 3]


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def each(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Each question type with the running number of its items."""
    for name, count in counts.items():
        for number in range(count):
            yield name, number


def vsi_bench(folder: Path, counts: Mapping[str, int]) -> dict[str, str]:
    """`test-*.parquet`: `ground_truth` is text, `options` null for numbers. Three questions a scene."""
    rows, videos = [], {}
    for index, (kind, number) in enumerate(each(counts)):
        numeric = kind.endswith(("_estimation", "abs_distance", "counting"))
        scene = index // 3
        dataset = ("arkitscenes", "scannet", "scannetpp")[scene % 3]
        rows.append(
            {
                "id": index,
                "dataset": dataset,
                "scene_name": f"{scene:06d}",
                "question_type": kind,
                "question": f"How is {kind} {number}?" if numeric else f"What colour has ball {number}?",
                "ground_truth": str(2 + number % 4) if numeric else "ABC"[scene % 3],
                "options": None if numeric else LETTERED,
            }
        )
        videos[f"{dataset}/{scene:06d}.mp4"] = colour_of(scene)
    write_parquet(folder / "test-00000-of-00001.parquet", rows)
    return videos


def video_mmmu(folder: Path, counts: Mapping[str, int]) -> dict[str, str]:
    """`{track}/test-*.parquet`: 10 options, once 14, two of equal text; open items and `<image 1>` in Adaptation."""
    videos = {}
    for track, count in counts.items():
        rows = []
        for number in range(count):
            options = [*COLOURS, "grey", "grey", *(f"colour {i}" for i in range(5))]
            row = {"id": f"validation_Energy_and_Power_{number}", "question": "What colour has the ball?"}
            row |= {"options": options, "answer": "ABC"[number % 3], "question_type": "multiple-choice"}
            if number == 1:
                row |= {"options": [*options, "k", "l", "m", "purple"]}
            if track == "Perception":
                row["question_type"] = "perception"
            if track == "Adaptation":
                row |= {"question": f"<image 1> {row['question']}", "image": {"bytes": b"png", "path": None}}
                if number == 2:
                    row |= {"options": [], "answer": "12.35", "question_type": "open"}
                if number == 4:
                    row |= {"question_type": "open"}  # open, though it has options and a letter
            rows.append(row)
            videos[f"Engineering/{row['id']}.mp4"] = colour_of(number)
        write_parquet(folder / track / "test-00000-of-00001.parquet", rows)
    return videos


def mmvu(folder: Path, counts: Mapping[str, int], open_items: int = 2) -> dict[str, str]:
    """`validation.json`: links, choices A to E, and open questions that the paper leaves out."""
    rows, videos = [], {}
    for number in range(counts["multiple-choice"] + open_items):
        path = f"Art/{number}.mp4"
        choices = dict(zip("ABCDE", [*COLOURS, "grey", "white"], strict=True))
        row = {
            "id": f"validation_{number}",
            "video": f"https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/videos/{path}",
            "youtube_url": "",
            "question_type": "multiple-choice",
            "metadata": {"subject": "Art", "textbook": "", "rationale": "", "knowledge": []},
            "question": "What colour has the ball?",
            "choices": choices,
            "answer": "ABC"[number % 3],
        }
        if number >= counts["multiple-choice"]:
            row |= {"question_type": "open-ended", "choices": dict.fromkeys("ABCDE", ""), "answer": "a red ball"}
        else:
            videos[f"videos/{path}"] = colour_of(number)
        rows.append(row)
    write_json(folder / "validation.json", rows)
    return videos


def vcr_bench(folder: Path, counts: Mapping[str, int]) -> dict[str, str]:
    """`meta_info_video.json`: `multiple-choice` with a hyphen, empty choices, open questions."""
    rows, videos = [], {}
    for number in range(counts[""] + 2):
        path = f"video/LLaVA-Video/{number}.mp4"
        is_open = number >= counts[""]
        choices = dict(zip("ABCDE", [*COLOURS, "grey" if number % 2 else "", ""], strict=True))
        rows.append(
            {
                "id": number,
                "video_path": path,
                "duration": 3.0,
                "dimension": ("fundamental temporal reasoning", "video plot analysis")[number % 2],
                "question": "What colour has the ball?",
                "multiple-choice": not is_open,
                "choices": dict.fromkeys("ABCDE", "") if is_open else choices,
                "answer": "a red ball" if is_open else "ABC"[number % 3],
                "reasoning": ["It is shown."],
            }
        )
        if not is_open:
            videos[f"v1/videos/{path}"] = colour_of(number)
    write_json(folder / "v1" / "videos" / "meta_info_video.json", rows)
    return videos


CLIPPED = ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")


def mvbench(folder: Path, counts: Mapping[str, int], layout: int = 0) -> dict[str, str]:
    """`json/{task}.json`: the answer is a text; `start` and `end`; colliding names; webm; one item of one option.

    `layout` 0 is the branch `main`, 1 the branch `video`.
    """
    from data_tools.evaluate.adapters.mvbench import FOLDERS

    videos = {}
    for task, count in counts.items():
        folders = FOLDERS[task]
        rows = []
        for number in range(count):
            name = f"video_{number}.webm" if task == "action_antonym" else f"video_{number}.mp4"  # collide
            row = {"video": name, "question": "What colour has the ball?", "candidates": list(COLOURS)}
            row |= {"answer": colour_of(number)}
            if task == "object_existence" and number == 0:
                row |= {"candidates": [colour_of(0)]}
            if task in CLIPPED:
                row |= {"start": 0.5, "end": 2.5}
            if task == "action_localization":
                row |= {"accurate_start": 1.0, "accurate_end": 2.0}
            rows.append(row)
            stem = name.removesuffix(".webm") + (".mp4" if layout else ".webm") if name.endswith("webm") else name
            videos[f"video/{folders[layout if len(folders) > 1 else 0]}/{stem}"] = colour_of(number)
        write_json(folder / "json" / f"{task}.json", rows)
    return videos


def tempcompass(folder: Path, counts: Mapping[str, int]) -> dict[str, str]:
    """`{type}/test-*.parquet`: options inside the question, a line each; captioning has a choice question too."""
    videos = {}
    for kind, count in counts.items():
        rows = []
        for number in range(count):
            colour = colour_of(number)
            options = "\n".join(LETTERED)
            sentences = "\n".join(f"Option {i}: the ball is {name}." for i, name in enumerate(COLOURS[:2], 1))
            choice = {"question": f"What colour has the ball?\n{options}", "answer": LETTERED[number % 3]}
            row = {"video_id": f"{number}_reverse", "dim": "attribute_change"}
            row |= {
                "multi-choice": choice,
                "yes_no": {"question": f"Is the ball {colour}?", "answer": ("yes", "no")[number % 2]},
                "caption_matching": {
                    "question": f"Which description is a more suitable match to the video?\n{sentences}",
                    "answer": f"Option {1 + number % 2}: the ball is {COLOURS[number % 2]}.",
                },
                "captioning": {
                    "question": "Describe the video.",
                    "answer": "",
                    **{f"mc_{name}": text for name, text in choice.items()},
                },
            }[kind]
            rows.append(row)
            videos[f"videos/{number}_reverse.mp4"] = colour
        write_parquet(folder / kind / "test-00000-of-00001.parquet", rows)
    return videos


def video_mme(folder: Path, counts: Mapping[str, int]) -> dict[str, str]:
    """`videomme/test-*.parquet`: three questions a video; some files end in `.MP4` or `.mkv`."""
    rows, videos = [], {}
    for index, (duration, _) in enumerate(each(counts)):
        video = index // 3
        rows.append(
            {
                "video_id": f"{video + 1:03d}",
                "duration": duration,
                "domain": "Knowledge",
                "sub_category": "Geography",
                "url": "https://example.invalid",
                "videoID": f"v_{video}",
                "question_id": f"{video + 1:03d}-{index % 3 + 1}",
                "task_type": "Counting Problem",
                "question": "What colour has the ball?",
                "options": [*(f"{option}." for option in LETTERED), "D. red."]
                if index == 0
                else [*LETTERED, "D. grey"],
                "answer": "ABC"[video % 3],
            }
        )
        videos[f"data/v_{video}{('.mp4', '.MP4', '.mkv')[video % 3]}"] = colour_of(video)
    write_parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    return videos


def video_r1(folder: Path, count: int = 6) -> Path:
    """`eval_tempcompass.json` in Video-R1's fields."""
    rows = [
        {
            "problem_id": number,
            "problem": "What colour has the ball?",
            "data_type": "video",
            "problem_type": "multiple choice",
            "original_question_type": "multi-choice",
            "options": LETTERED,
            "process": "",
            "solution": f"<answer>{'ABC'[number % 3]}</answer>",
            "path": f"./Evaluation/TempCompass/videos/{number}.mp4",
            "data_source": "TempCompass",
        }
        for number in range(count)
    ]
    write_json(folder / "eval_tempcompass.json", rows)
    return folder / "eval_tempcompass.json"


MAKERS: Mapping[str, Callable[..., dict[str, str]]] = {
    maker.__name__: maker for maker in (vsi_bench, video_mmmu, mmvu, vcr_bench, mvbench, tempcompass, video_mme)
}


def write_videos(folder: Path, videos: Mapping[str, str]) -> None:
    """Write the videos that a maker has named."""
    for path, colour in videos.items():
        if path.endswith(".webm"):
            write_webm(folder / path, colour)
        else:
            write_video(folder / path, colour)


def write_webm(path: Path, colour: str) -> None:
    import av
    import numpy as np
    from vision_answer import COLOURS as VALUES

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=4)
        stream.width, stream.height, stream.pix_fmt = 120, 90, "yuv420p"
        for _ in range(12):
            picture = np.full((90, 120, 3), VALUES[colour], np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
