# SPDX-License-Identifier: Apache-2.0
"""A reward that was never computed counts as 0.0, the same as a wrong answer."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf

THEN = (
    "the reward manager p2r (verl_p2r/plugin/rl/reward_manager.py) can report a missing verdict as verl does, in the "
    "place of its key perception_valid"
)


def fault() -> str | None:
    """Score a response with a function that does not answer in time, and one that is wrong."""
    found, wrong = asyncio.run(_scored(_never)), asyncio.run(_scored(_wrong))
    marked = found["reward_extra_info"].keys() == wrong["reward_extra_info"].keys() and found != wrong
    if found["reward_score"] != 0.0 or marked:  # in every row, so that a trainer can look for the mark
        return None
    return f"the function timed out, and the response has the reward {found['reward_score']}: {found}"


async def _never(**_: Any) -> float:
    await asyncio.sleep(60)
    return 1.0


async def _wrong(**_: Any) -> float:
    return 0.0


async def _scored(function: Callable[..., Any]) -> dict:
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

    manager = get_reward_manager_cls("rate_limited")(
        config=OmegaConf.create({"reward": {"timeout": 0.05}}),
        tokenizer=SimpleNamespace(decode=lambda *_, **__: "A dot."),
        compute_score=function,
    )
    row = DataProto.from_dict(
        tensors={
            "prompts": torch.zeros(1, 2, dtype=torch.int64),
            "responses": torch.ones(1, 3, dtype=torch.int64),
            "attention_mask": torch.ones(1, 5, dtype=torch.int64),
        },
        non_tensors={"data_source": ["made"], "reward_model": [{"ground_truth": "a dot"}], "extra_info": [{}]},
    )
    return await manager.run_single(row)
