# SPDX-License-Identifier: Apache-2.0
"""One rank of a few: trains on its share of a batch and writes what it saw. Started by test_two_ranks.py."""

import json
import os
import sys
from pathlib import Path

rank, world, folder, store = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
os.environ.update(
    VERL_PLATFORM="cpu",
    HF_HUB_OFFLINE="1",
    TORCHDYNAMO_DISABLE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(path) for path in (HERE, HERE.parent, HERE.parents[2] / "examples" / "quickstart")]

import verl_p2r.plugin  # noqa: F401, E402, I001  torch and torchvision made to fit before anything imports them

import prefix_engines as engines  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

BUDGET = 120  # packed tokens


def main() -> None:
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
    main()
