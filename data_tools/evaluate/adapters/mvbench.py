# SPDX-License-Identifier: Apache-2.0
"""MVBench (arXiv 2311.17005): twenty tasks of 200 items, from either branch of its repository.

`main` holds whole videos, with `start` and `end` for six tasks; the branch `video` holds cut ones. Files of different
folders share names, so a path keeps its folder.
"""

from collections.abc import Iterator
from typing import Any

from data_tools.evaluate.adapters.base import CHOICE, Adapter, Download, Item, lettered
from verl_p2r.evaluation import Protocol

# Task → the folder of its videos on `main`, and on the branch `video` where it is another one.
STAR = ("star/Charades_v1_480", "star/Charades_segment")
FOLDERS: dict[str, tuple[str, ...]] = {
    "action_antonym": ("ssv2_video", "ssv2_video_mp4"),
    "action_count": ("perception/videos",),
    "action_localization": ("sta/sta_video", "sta/sta_video_segment"),
    "action_prediction": STAR,
    "action_sequence": STAR,
    "character_order": ("perception/videos",),
    "counterfactual_inference": ("clevrer/video_validation",),
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "fine_grained_pose": ("nturgbd", "nturgbd_convert"),
    "moving_attribute": ("clevrer/video_validation",),
    "moving_count": ("clevrer/video_validation",),
    "moving_direction": ("clevrer/video_validation",),
    "object_existence": ("clevrer/video_validation",),
    "object_interaction": STAR,
    "object_shuffle": ("perception/videos",),
    "scene_transition": ("scene_qa/video",),
    "state_change": ("perception/videos",),
    "unexpected_action": ("FunQA_test/test",),
}
PARENTS = ("video/", "", "data0613/", "video/data0613/")  # where the zips are unpacked; data0613 completes two folders


def items(source: Download, protocol: Protocol) -> Iterator[Item]:
    """Read `json/{task}.json`, the answer's text as its letter.

    A protocol with clips takes a cut file as it is, else the part of the whole video between `start` and `end`. One
    without clips takes whole videos only: a cut file in its place would be another benchmark.
    """
    for task, folders in FOLDERS.items():
        for number, row in enumerate(source.rows(f"json/{task}.json", f"{task}.json")):
            name, candidates = row["video"], list(map(str, row["candidates"]))
            if row["answer"] not in candidates:
                raise ValueError(f"MVBench {task} {number}: the answer {row['answer']!r} is not among its candidates")
            path = _find(source, name, folders if protocol.clips or len(folders) == 1 else _whole(task))
            cut = len(folders) == 2 and f"{folders[1]}/" in path and "segment" in folders[1]
            bounds: dict[str, Any] = {"video_start": row.get("start"), "video_end": row.get("end")}
            clip = protocol.clips and not cut and None not in bounds.values()
            yield Item(
                id=f"{task}/{number}",
                question=row["question"],
                problem_type=CHOICE,
                solution=chr(ord("A") + candidates.index(row["answer"])),
                path=path,
                question_type=task,
                options=tuple(lettered(candidates)),
                media={name: float(value) for name, value in bounds.items()} if clip else {},
            )


def _whole(task: str) -> tuple[str, ...]:
    """Return the folders of whole videos: converted files are whole, segments are not."""
    return tuple(folder for folder in FOLDERS[task] if "segment" not in folder)


def _find(source: Download, name: str, folders: tuple[str, ...]) -> str:
    """Return the path of a video in the layout that has it; converted files end in `.mp4`."""
    names = [name]
    if not name.endswith(".mp4"):
        names.append(f"{name.rsplit('.', 1)[0] if '.' in name else name}.mp4")
    return source.first_file(*(f"{parent}{folder}/{one}" for folder in folders for parent in PARENTS for one in names))


ADAPTER = Adapter(
    name="mvbench",
    title="MVBench",
    hub="OpenGVLab/MVBench",
    licence="MIT for annotations; NTU RGB+D by request to its owners",
    counts=dict.fromkeys(FOLDERS, 200),
    items=items,
)
