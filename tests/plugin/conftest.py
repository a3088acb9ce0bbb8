# SPDX-License-Identifier: Apache-2.0
"""A real TransferQueue in a real Ray."""

import pytest
import ray
import transfer_queue as tq
from cpu_config import make_config
from omegaconf import open_dict


@pytest.fixture(scope="module")
def queue():
    """TransferQueue on a Ray cluster of this module's own, which another cluster on the machine does not notice."""
    ray.init(
        address="local",
        num_cpus=8,  # logical: with 2, tq.init() waits for ever
        num_gpus=1,
        include_dashboard=False,
        namespace="verl_p2r_tests",
        object_store_memory=200 * 1024**2,
    )
    config = make_config().transfer_queue
    with open_dict(config):
        config.enable = True
    tq.init(config)
    yield
    tq.close()
    ray.shutdown()


@pytest.fixture(autouse=True)
def _empty_queue(request):
    yield
    if "queue" in request.fixturenames:
        for partition, keys in (tq.kv_list() or {}).items():
            if keys:
                tq.kv_clear(keys=list(keys), partition_id=partition)
