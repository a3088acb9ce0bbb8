# SPDX-License-Identifier: Apache-2.0
"""The two sides of `benchmarks/media.py`: clips, configs, datasets' rows, and agent loop workers without a cluster.

Imported after the benchmark has set the environment and imported `verl_p2r.plugin`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import io
import resource
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import make_model
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from transfer_queue.utils.serial_utils import encode
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, agent_loop_tq
from verl.utils import tensordict_utils as tu
from verl.workers.rollout.replica import TokenOutput

from verl_p2r.media import decode
from verl_p2r.plugin.media.agent_loop import P2RAgentLoopWorker

STOCK, OURS = "stock", "ours"
MIB, ROLLOUTS, PROMPTS, VIDEOS = 2**20, 8, 32, 2000
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


def configure(side: str, folder: Path) -> DictConfig:
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


# --- The agent loop --------------------------------------------------------------------------------------------------


class Server:
    """In the place of verl's client of the inference server."""

    async def generate(self, request_id: str, **kwargs) -> TokenOutput:
        steps = {"global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}
        return TokenOutput(token_ids=[300] * 100, log_probs=[-0.5] * 100, extra_fields=steps)


async def _score(data: Any) -> dict[str, Any]:
    return {"reward_score": 1.0, "reward_extra_info": {"reasoning": 1.0}}


REWARD_WORKER = SimpleNamespace(compute_score=SimpleNamespace(remote=_score))


class Queue:
    """In the place of TransferQueue: what is put is serialized as TransferQueue serializes it, and kept."""

    def __init__(self):
        self.held: list[bytes] = []

    def init(self, *args: Any) -> None:
        pass

    async def async_kv_put(self, *, key: str, tag: dict[str, Any], **kwargs: Any) -> None:
        if tag["status"] == "failure":
            raise RuntimeError("a rollout failed; verl has logged why")

    async def async_kv_batch_put(self, *, fields: Any, **kwargs: Any) -> None:
        self.held += [bytes(part) for part in encode({name: fields[name] for name in fields.keys()})]  # noqa: SIM118


class Worker:
    """One side's agent loop worker outside of an actor."""

    def __init__(self, side: str, folder: Path):
        self.queue = agent_loop_tq.tq = Queue()
        worker = {STOCK: AgentLoopWorkerTQ.__ray_actor_class__, OURS: P2RAgentLoopWorker}[side]
        self._worker = worker(configure(side, folder), Server(), None, [REWARD_WORKER])
        self._loop = asyncio.new_event_loop()

    def roll_out(self, paths: list[str]) -> None:
        """Let a batch of prompts, one for each video, have its rollouts."""
        agent_loop_tq.tq = self.queue
        text = {"type": "text", "text": QUESTION.removeprefix("<video>")}
        prompts = [[{"role": "user", "content": [element(path), text]}] for path in paths]
        columns = {"uid": [uuid.uuid4().hex for _ in paths], "raw_prompt": prompts, "index": list(range(len(paths)))}
        batch = tu.get_tensordict(columns, {"global_steps": 1, "validate": False})

        async def run() -> None:
            await self._worker.generate_sequences(batch)
            await asyncio.gather(*self._worker.background_tasks)

        self._loop.run_until_complete(run())


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count readings of video files and runs of the Hugging Face processor's video part."""
    counts = {"decodes": 0, "processor_calls": 0}
    read, call = decode._decode, Qwen2VLVideoProcessor.__call__

    def counting_read(*args: Any) -> Any:
        counts["decodes"] += 1
        return read(*args)

    def counting_call(*args: Any, **kwargs: Any) -> Any:
        counts["processor_calls"] += 1
        return call(*args, **kwargs)

    decode._decode, Qwen2VLVideoProcessor.__call__ = counting_read, counting_call
    try:
        yield counts
    finally:
        decode._decode, Qwen2VLVideoProcessor.__call__ = read, call


def start_ray() -> None:
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=2**30,
        configure_logging=False,
        log_to_driver=False,
    )


def peak_memory(side: str, folder: Path, paths: list[str]) -> float:
    """Bytes that a batch of `PROMPTS` prompts adds to this process: worker, object store pages, the queue's content.

    What rolling out `paths` adds at its peak is scaled to that batch; what starting the worker adds is not.
    """

    def highest() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    torch.set_num_threads(torch.get_num_threads())  # in a forked process, threads that ask first at once can crash
    imported = highest()
    with contextlib.redirect_stdout(io.StringIO()):
        if side == OURS:
            start_ray()
        worker = Worker(side, folder)
        started = highest()
        worker.roll_out(paths)
    peak = highest()
    ray.shutdown()
    return started - imported + (peak - started) * PROMPTS / len(paths)
