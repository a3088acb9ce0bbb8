# SPDX-License-Identifier: Apache-2.0
"""A process group of one, and tiny models of the families."""

import prefix_engines
import pytest
import torch
import torch.distributed as dist
from verl.workers.engine.fsdp import transformer_impl


@pytest.fixture(scope="module")
def world():
    """A process group of one, and one thread: these models are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """`models(family)`: the folder of a tiny model."""
    made = {}

    def get(family: str):
        if family not in made:
            made[family] = prefix_engines.save_model(tmp_path_factory.mktemp(family) / "model", family)
        return made[family]

    return get


@pytest.fixture
def fsdp1_on_a_cpu(monkeypatch):
    """verl has FSDP1 broadcast the first rank's weights, which torch does on accelerators only."""

    class OnCPU(transformer_impl.FSDP):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "sync_module_states": False})

    monkeypatch.setattr(transformer_impl, "FSDP", OnCPU)
