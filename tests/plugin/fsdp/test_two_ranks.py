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
FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


def start(rank: int, scenario: str, folder: Path, store: Path) -> subprocess.Popen:
    environment = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(HERE / "one_of_ranks.py"), scenario, str(folder), str(store)],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(map(str, PATHS))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def on_two_ranks(scenario: str, folder: Path, tmp_path: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """What each rank saw, and the gradients."""
    store = tmp_path / "store"
    ranks = [start(rank, scenario, folder, store) for rank in range(2)]
    outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "".join(output[-3000:] for output in outputs)
    return [json.loads(Path(f"{store}.{rank}.json").read_text()) for rank in range(2)], torch.load(f"{store}.pt")


def on_one_rank(folder: Path, *overrides: str) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradients of verl's engine."""
    cls = engines.CPUFSDPEngine if overrides else engines.StockEngine  # stock's ignores our fields
    stock = engines.build(folder, cls, *overrides)
    rows = engines.uneven_rollouts(stock.module.config)
    return engines.train(stock, rows.batch(), engines.loss_config(folder))


def test_two_ranks_give_loss_and_gradients_of_one_rank(models, tmp_path):
    folder = models("qwen2_5_vl")
    seen, grads = on_two_ranks("uneven", folder, tmp_path)
    loss, expected = on_one_rank(folder)
    assert seen[0]["loss"] == pytest.approx(loss, abs=1e-6)
    assert engines.worst(grads, expected) <= 1e-5
    assert [one["tower_calls"] for one in seen] == [3, 3]  # one rank alone would need two


def test_kept_features_work_when_rows_change_rank(models, tmp_path):
    """Only the rank without a row's features computes them, but both call the tower: FSDP gathers on all or none."""
    folder = models("qwen2_5_vl")
    seen, grads = on_two_ranks("features", folder, tmp_path)
    loss, expected = on_one_rank(folder, "engine.freeze_vision_tower=True")
    assert seen[0]["loss"] == pytest.approx(loss, abs=1e-6)
    assert engines.worst(grads, expected) <= 1e-5
    # Rank 0 has two clips of 256 patches and an image of 16, rank 1 an image of 32. In the first step the update calls
    # the tower on neither. In the second the log-probabilities still find the features of the first, and the update has
    # the other rank's rows.
    assert seen[0]["tower_calls"] == [[1, 528], [2, 528 + 32]]
    assert seen[1]["tower_calls"] == [[1, 32], [2, 32 + 528]]


def test_ulysses_splits_tower_work_without_changing_numbers(models, tmp_path):
    folder = models("qwen2_5_vl")
    seen, grads = on_two_ranks("ulysses", folder, tmp_path)
    loss, expected = on_one_rank(folder)
    assert [one["loss"] for one in seen] == pytest.approx([loss, loss], abs=1e-6)
    assert engines.worst(grads, expected) <= 1e-5
    assert [one["tower_calls"] for one in seen] == [1, 1]
    assert sum(one["patches"] for one in seen) == 2 * 256 + 16 + 32  # verl's engine: as many on each rank
    assert max(one["patches"] for one in seen) <= 300


@pytest.mark.parametrize("family", FAMILIES)
def test_split_tower_equals_whole_tower_in_features_and_gradients(family, models, tmp_path):
    seen, _ = on_two_ranks("tower", models(family), tmp_path)
    for one in seen:
        assert one["features"] <= 1e-5
        assert one["gradients"] <= 1e-5
