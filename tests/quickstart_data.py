# SPDX-License-Identifier: Apache-2.0
"""Levels of the quickstart's task, and how its clips and rows are read."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import re
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
from paths import QUICKSTART


def load(name: str):
    """Import one of the example's modules, which are not a package."""
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


# --- the files -------------------------------------------------------------------------------------------------------

NUMBERS = ["--sft-videos", "24", "--rows-per-video", "3", "--sft-val", "8", "--rl", "24", "--val", "24"]


def rows(folder: Path, split: str) -> list[dict]:
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def decode(path: str | Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
