# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks/media.py` and `media_datasets.py` give to both sides, and how they measure and report.

Import it before torch, verl and Ray: it sets the environment, and makes torch and torchvision fit.
"""

from __future__ import annotations

import contextlib
import copy
import cProfile
import functools
import io
import os
import pstats
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.update(VERL_PLATFORM="cpu", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "quickstart"))

import verl_p2r.plugin  # noqa: F401, I001

import make_model
import pyarrow as pa
import pyarrow.parquet as pq
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

STOCK, OURS = "stock", "ours"
ROLLOUTS = 8
CLIP = {"width": 640, "height": 320, "fps": 25, "seconds": 8}  # frames are resized to 448 x 224 = 128 · 28² pixels
RULES = {"fps": 2.0, "min_frames": 4, "max_frames": 16, "min_pixels": 128 * 28**2, "max_pixels": 128 * 28**2}
QUESTION = "<video>What moves, and where does it go?"
RESPONSE = "<observation>a red square moves left</observation><think>so</think><answer>left</answer>"


# --- What both sides are given ---------------------------------------------------------------------------------------


def write_model(folder: Path) -> None:
    """The quickstart's processor, with the pixel limits that Qwen2.5-VL's checkpoints have; weights are not needed."""
    processor = make_model.build_processor()
    limits = {"min_pixels": 4 * 28**2, "max_pixels": 16384 * 28**2}
    processor.image_processor = Qwen2VLImageProcessor(**limits)
    processor.video_processor = Qwen2VLVideoProcessor(**limits)
    processor.save_pretrained(folder)
    config = make_model.build_config(processor.tokenizer)
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.save_pretrained(folder)


@functools.cache  # composing takes a second
def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_module("verl_p2r.config", version_base=None):
        return compose(name, [*overrides, "data.p2r.rejects_dir=null"])


@functools.cache
def configure(side: str, folder: Path) -> DictConfig:
    """One side's configuration of RL; copy what you change."""
    config = composed(
        "p2r_ppo_cpu",
        f"actor_rollout_ref.model.path={folder / 'model'}",
        f"actor_rollout_ref.rollout.n={ROLLOUTS}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent",
        "data.max_prompt_length=2048",
        "data.max_response_length=128",
        f"data.p2r.screen_cache={folder / 'screenings'}",
    )
    config = copy.deepcopy(config)
    OmegaConf.resolve(config)  # as verl's entrypoint does
    if side == STOCK:
        config.data.custom_cls.path = None
        config.data.filter_overlong_prompts = True
        config.data.filter_overlong_prompts_workers = None  # in this process, as fast as in verl's one worker
    return config


def element(path: str) -> dict[str, Any]:
    return {"type": "video", "video": path, **RULES}


def rl_rows(paths: list[str]) -> list[dict]:
    row = {"data_source": "benchmark", "problem_type": "free-form", "reward_model": {"ground_truth": "left"}}
    prompt = [{"role": "user", "content": QUESTION}]
    return [{**row, "prompt": prompt, "videos": [element(p)], "extra_info": {"index": i}} for i, p in enumerate(paths)]


def sft_rows(paths: list[str]) -> list[dict]:
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": RESPONSE}]
    return [{"messages": messages, "videos": [element(path)]} for path in paths]


def parquet(folder: Path, rows: list[dict]) -> str:
    path = str(folder / f"{uuid.uuid4().hex}.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


# --- Measuring -------------------------------------------------------------------------------------------------------


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(name: str, stock: str, ours: str, ratio: str, note: str = "") -> None:
    print(f"{name:42}{stock:>14}{ours:>14}{ratio:>10}  {note}", flush=True)


def missed(found: Mapping[str, float], targets: Mapping[str, float], at_most: tuple[str, ...]) -> list[str]:
    """Print and return the figures that miss their target: a highest value for `at_most`, a lowest for the others."""
    names = [n for n, value in found.items() if (value > targets[n] if n in at_most else value < targets[n])]
    if names:
        print("missed: " + ", ".join(f"{n} {found[n]:.4g} (target {targets[n]:g})" for n in names))
    return names


def profiled(function: Callable[[], object]) -> None:
    """Print the ten functions that take most time; what runs in threads is run in this one, to be seen."""

    def run_now(pool: ThreadPoolExecutor, work: Callable, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    submit, ThreadPoolExecutor.submit = ThreadPoolExecutor.submit, run_now
    try:
        with contextlib.redirect_stdout(io.StringIO()), cProfile.Profile() as profile:
            function()
    finally:
        ThreadPoolExecutor.submit = submit
    pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(10)
