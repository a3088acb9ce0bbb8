# SPDX-License-Identifier: Apache-2.0
"""A rollout by vLLM puts the pixels of its video into TransferQueue twice."""

import asyncio
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf

from reproductions import _tiny

THEN = (
    "verl_p2r/plugin/media/agent_loop.py need not clear output.mm_processor_output. Its shared pixels stay: they save "
    "the other copies"
)


def fault() -> str | None:
    """Roll out one prompt with a video, and look at the row that would be stored."""
    row = asyncio.run(_rolled_out())
    pixels = row["multi_modal_inputs"]["pixel_values_videos"]
    copies = sum(tensor.shape == pixels.shape and torch.equal(tensor, pixels) for tensor in _tensors(row))
    if copies == 1:
        return None
    holders = [name for name, value in row.items() if any(tensor.shape == pixels.shape for tensor in _tensors(value))]
    return f"{copies} copies of the same {pixels.nbytes:,} bytes in one row: {' and '.join(sorted(holders))}"


async def _rolled_out() -> dict[str, Any]:
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
    from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, agent_loop_tq
    from verl.utils.dataset.rl_dataset import RLHFDataset

    processor = _tiny.processor()
    rollout = {"name": "vllm", "prompt_length": 128, "response_length": 8}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
    loop = SingleTurnAgentLoop(
        trainer_config=DictConfigWrap(config),
        server_manager=SimpleNamespace(generate=_answer),
        tokenizer=processor.tokenizer,
        processor=processor,
        dataset_cls=RLHFDataset,
        data_config=DictConfigWrap(config.data),
        hf_model_type="qwen2_5_vl",
    )
    video = {"type": "video", "video": _tiny.frames(4), "sample_fps": 2.0}
    message = {"role": "user", "content": [video, {"type": "text", "text": "What moves?"}]}
    output = await loop.run({}, raw_prompt=[message])
    worker = object.__new__(AgentLoopWorkerTQ.__ray_actor_class__)
    worker.processor, worker.tokenizer, worker.mm_processor_kwargs = processor, processor.tokenizer, {}
    worker.reward_loop_worker_handles, worker.distillation_enabled = None, False
    stored: dict[str, Any] = {}

    async def put(**batch: Any) -> None:
        stored.update(batch)

    queue, agent_loop_tq.tq = agent_loop_tq.tq, SimpleNamespace(async_kv_batch_put=put)
    try:
        await worker._agent_loop_postprocess(output, False, uid="prompt", session_id=0, global_steps=0)
    finally:
        agent_loop_tq.tq = queue
    return {name: stored["fields"][name][0] for name in sorted(stored["fields"].keys())}


async def _answer(**_: Any) -> Any:
    from verl.workers.rollout.replica import TokenOutput

    return TokenOutput(token_ids=[5, 6], log_probs=[-1.0, -1.0], extra_fields={})


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    value = getattr(value, "data", value) if not isinstance(value, torch.Tensor) else value
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
