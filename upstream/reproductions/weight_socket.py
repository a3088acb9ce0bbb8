# SPDX-License-Identifier: Apache-2.0
"""Two runs on one machine, each with its own Ray cluster, send their weights through the same socket."""

import os
from types import SimpleNamespace

THEN = "verl_p2r/plugin/cpu/weight_socket.py can go, with its lines in vllm_replica.py and __init__.py next to it"
SIZES = dict.fromkeys((f"{name}_parallel_size" for name in ("tensor_model", "pipeline_model", "data")), 1)


def fault() -> str | None:
    """Start a Ray cluster twice, and look at the name of the socket in each."""
    one, other = _socket(), _socket()
    if one != other:
        return None
    return f"two runs, each with its own Ray cluster, send weights through {one}"


def _socket() -> str:
    """The socket of a run's first trainer rank."""
    import ray
    from verl.workers.rollout.vllm_rollout import ServerAdapter

    os.environ |= {"RANK": "0", "RAY_LOCAL_WORLD_SIZE": "1"}
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        return ServerAdapter(SimpleNamespace(**SIZES, layered_summon=False), None, None).zmq_handle
    finally:
        ray.shutdown()
        for name in ("RANK", "RAY_LOCAL_WORLD_SIZE"):
            del os.environ[name]
