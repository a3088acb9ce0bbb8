# SPDX-License-Identifier: Apache-2.0
"""One rank of a few: trains on its share of a batch and writes what it saw. Started by test_two_ranks.py."""

import json
import os
import sys
from pathlib import Path

import prefix_engines as engines
import torch
import torch.distributed as dist

import verl_p2r.plugin  # noqa: F401  torch and torchvision made to fit before anything imports them

BUDGET = 120  # packed tokens


def main(folder: Path, store: str) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, store=dist.FileStore(store, world))
    engine = engines.build(folder, engines.CPUFSDPEngine, engines.SHARED)
    made = engines.uneven_rollouts(engine.module.config)
    share = len(made.rows) // world
    rows = made.rows[rank * share : (rank + 1) * share]
    count = engines.TowerCalls(engine)
    data = made.batch(rows, total=len(made.rows), use_dynamic_bsz=True, max_token_len_per_gpu=BUDGET)
    loss, grads = engines.train(engine, data, engines.loss_config(folder))
    total = torch.tensor(loss)
    dist.all_reduce(total)  # verl's worker takes the mean over ranks
    if rank == 0:
        torch.save({"loss": total.item() / world, "grads": grads}, f"{store}.pt")
    Path(f"{store}.{rank}.json").write_text(json.dumps({"tower_calls": count.calls, "patches": count.patches}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
