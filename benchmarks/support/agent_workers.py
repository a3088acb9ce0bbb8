# SPDX-License-Identifier: Apache-2.0
"""Verl's agent loop worker and ours without a cluster, for `benchmarks/media.py`; imported after `media_sides`."""

from __future__ import annotations

import asyncio
import contextlib
import io
import resource
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import head_start
import ray
import torch
from media_sides import OURS, QUESTION, STOCK, configure, element
from transfer_queue.utils.serial_utils import encode
from transformers import Qwen2VLVideoProcessor
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, agent_loop_tq
from verl.utils import tensordict_utils as tu
from verl.workers.rollout.replica import TokenOutput

from verl_p2r.media import decode
from verl_p2r.plugin.media.agent_loop import P2RAgentLoopWorker

PROMPTS = 32  # the batch whose memory is reported has so many


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
            head_start.connect_to_ray()
        worker = Worker(side, folder)
        started = highest()
        worker.roll_out(paths)
    peak = highest()
    ray.shutdown()
    return started - imported + (peak - started) * PROMPTS / len(paths)
