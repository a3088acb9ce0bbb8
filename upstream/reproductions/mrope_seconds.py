# SPDX-License-Identifier: Apache-2.0
"""The agent loop gives a Qwen2.5-VL video the same positions in time at every frame rate."""

from types import SimpleNamespace

import torch

from reproductions import _tiny

THEN = (
    "the time axis of verl_p2r/plugin/media/position_ids.py can go: P2RAgentLoopWorker._compute_position_ids need not "
    "override verl's"
)
GRIDS = 4
TOKENS_PER_SECOND = 2


def fault() -> str | None:
    """Compare the positions of the same frames sampled at 4, 2 and 1 frames a second with the model's definition."""
    found = {seconds: _times(seconds) for seconds in (0.5, 1.0, 2.0)}
    wanted = {seconds: [int(n * seconds * TOKENS_PER_SECOND) for n in range(GRIDS)] for seconds in found}
    if found == wanted:
        return None
    return "; ".join(f"{s} s between grids: positions {found[s]}, should be {wanted[s]}" for s in found)


def _times(seconds: float) -> list[int]:
    """Positions in time of the grids of a video, counted from its first."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    processor = _tiny.processor()
    row = _tiny.inputs(("video", (GRIDS, 4, 4)))
    given = {
        "video_grid_thw": row["video_grid_thw"],
        "second_per_grid_ts": torch.tensor([seconds]),
        "mm_token_type_ids": torch.zeros_like(row["input_ids"]),
    }
    worker = SimpleNamespace(processor=processor)
    positions = AgentLoopWorker._compute_position_ids(worker, row["input_ids"], row["attention_mask"], given)
    [_, time, _, _] = positions[0]
    times = time[row["input_ids"][0] == processor.config.video_token_id]
    return (times[:: len(times) // GRIDS] - times[0]).tolist()
