# SPDX-License-Identifier: Apache-2.0
"""One rank of a process group: runs a scenario and writes what it saw. Started by `test_two_ranks.py`.

python one_of_ranks.py SCENARIO MODEL STORE
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import prefix_engines as engines
import torch
import torch.distributed as dist
import ulysses_on_a_cpu
from transformers import AutoModelForImageTextToText
from verl.utils.transformers_compat import unpack_visual_output

import verl_p2r.plugin  # noqa: F401  torch and torchvision made to fit before anything imports them
from verl_p2r.plugin.fsdp.tower_split import run_split

BUDGET = 120  # packed tokens
FROZEN = ("engine.freeze_vision_tower=True", "engine.vision_features_gib=1")


def share(rows: list, rank: int, world: int) -> list:
    size = len(rows) // world
    return rows[rank * size : (rank + 1) * size]


def mean(value: float, world: int) -> float:
    """The mean over ranks, as verl's worker takes it."""
    total = torch.tensor(value)
    dist.all_reduce(total)
    return total.item() / world


def uneven(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """The shared prefix, with more work on one rank than on the other."""
    engine = engines.build(folder, engines.CPUFSDPEngine, engines.SHARED)
    made = engines.uneven_rollouts(engine.module.config)
    count = engines.TowerCalls(engine)
    rows = share(made.rows, rank, world)
    data = made.batch(rows, total=len(made.rows), use_dynamic_bsz=True, max_token_len_per_gpu=BUDGET)
    loss, grads = engines.train(engine, data, engines.loss_config(folder))
    return {"loss": mean(loss, world), "grads": grads, "tower_calls": count.calls}


def features(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """A frozen tower; before the update one rank's rows move, so that it lacks features that the other one has."""
    engine = engines.build(folder, engines.CPUFSDPEngine, engines.SHARED, *FROZEN)
    made = engines.uneven_rollouts(engine.module.config)
    calls = []
    count = engines.TowerCalls(engine)
    for rows in (made.rows, made.rows[5:] + made.rows[:5]):  # the second time rank 0 has what rank 1 had
        settings = {"total": len(rows), "micro_batch_size_per_gpu": 5}
        engines.infer(engine, made.batch(share(made.rows, rank, world), **settings))
        loss, grads = engines.train(
            engine, made.batch(share(rows, rank, world), **settings), engines.loss_config(folder)
        )
        calls.append((count.calls, count.patches))
    return {"loss": mean(loss, world), "grads": grads, "tower_calls": calls}


def ulysses(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """Both ranks share every sequence, without a shared prefix."""
    ulysses_on_a_cpu.install()
    engine = engines.build(
        folder, engines.CPUFSDPEngine, f"engine.ulysses_sequence_parallel_size={world}", use_remove_padding=True
    )
    made = engines.uneven_rollouts(engine.module.config)
    count = engines.TowerCalls(engine)
    loss, grads = engines.train(engine, made.batch(use_remove_padding=True), engines.loss_config(folder))
    return {"loss": loss, "grads": grads, "tower_calls": count.calls, "patches": count.patches}


def tower(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """The tower alone, split and whole: worst differences of its features and of its gradients."""
    visual = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa").model.visual
    parameters = list(visual.parameters())
    random = torch.Generator().manual_seed(0)

    def run(pixels: torch.Tensor, grids: torch.Tensor) -> list[torch.Tensor]:
        features, deepstack = unpack_visual_output(visual(pixels, grid_thw=grids))
        return [features, *(deepstack or [])]

    worst = {"features": 0.0, "gradients": 0.0}
    for grids in ([[5, 8, 12], [1, 4, 4], [2, 4, 8]], [[1, 4, 4]]):  # the second leaves a rank without a frame
        sizes = torch.tensor(grids)
        pixels = torch.randn(int(sizes.prod(-1).sum()), parameters[0][0].numel(), generator=random)
        whole = run(pixels, sizes)
        weights = [torch.randn(part.shape, generator=random) for part in whole]
        expected = torch.autograd.grad(_weighted(whole, weights), parameters)
        split = run_split(run, pixels, sizes, dist.group.WORLD)
        own = torch.arange(len(whole[0])) % world == rank  # this rank's part of the sequence
        loss = _weighted([part[own] for part in split], [part[own] for part in weights])
        for grad, right in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
            dist.all_reduce(grad)
            worst["gradients"] = max(worst["gradients"], ((grad - right).norm() / (right.norm() + 1e-6)).item())
        differences = [(a - b).abs().max().item() for a, b in zip(split, whole, strict=True)]
        worst["features"] = max(worst["features"], *differences)
    return worst


def _weighted(parts: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([(part * weight).sum() for part, weight in zip(parts, weights, strict=True)]).sum()


def main(scenario: str, folder: Path, store: str) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, store=dist.FileStore(store, world))
    made = {"uneven": uneven, "features": features, "ulysses": ulysses, "tower": tower}[scenario](folder, rank, world)
    grads = made.pop("grads", None)
    if rank == 0:
        torch.save(grads, f"{store}.pt")
    Path(f"{store}.{rank}.json").write_text(json.dumps(made))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
