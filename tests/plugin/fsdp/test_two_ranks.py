# SPDX-License-Identifier: Apache-2.0
"""Two gloo ranks under FSDP2 against verl's engine on one: mixed media, ragged groups, ranks with unequal work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import prefix_engines as engines
import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("world")]

HERE = Path(__file__).parent
PATHS = [HERE.parents[2], HERE.parents[2] / "examples" / "quickstart", HERE.parent]  # what the script imports from


def start(rank: int, folder: Path, store: Path) -> subprocess.Popen:
    environment = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(HERE / "one_of_ranks.py"), str(folder), str(store)],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(map(str, PATHS))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_loss_and_gradients_are_those_of_one_rank(models, tmp_path):
    folder = models("qwen2_5_vl")
    store = tmp_path / "store"
    ranks = [start(rank, folder, store) for rank in range(2)]
    outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "".join(output[-3000:] for output in outputs)

    stock = engines.build(folder, engines.StockEngine)
    rows = engines.uneven_rollouts(stock.module.config)
    loss, grads = engines.train(stock, rows.batch(), engines.loss_config(folder))
    made = torch.load(f"{store}.pt")
    assert made["loss"] == pytest.approx(loss, abs=1e-6)
    assert engines.worst(made["grads"], grads) <= 1e-5

    counts = [json.loads(Path(f"{store}.{rank}.json").read_text()) for rank in range(2)]
    assert counts[0]["tower_calls"] == counts[1]["tower_calls"] == 3  # one rank alone would need two
