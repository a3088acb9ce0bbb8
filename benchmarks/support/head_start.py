# SPDX-License-Identifier: Apache-2.0
"""A head start of seconds: Ray starts in another process during the imports, which skip vLLM and the collector.

Import it before anything else. Ray ends with the benchmark, however that ends; only its object store is used. No
agent loop worker uses vLLM, and verl can be imported without it.
"""

from __future__ import annotations

import functools
import gc
import os
import secrets
import subprocess
import sys

QUIET = {"configure_logging": False, "log_to_driver": False}


def collect_again() -> None:
    """Collect garbage from now on, among what comes now: walking all that was imported takes seconds at the exit."""
    gc.freeze()
    gc.enable()


def connect_to_ray() -> None:
    """Connect this process to Ray."""
    import ray

    ray.init(ray_address(), **QUIET)


@functools.cache  # it is printed once
def ray_address() -> str:
    """Where Ray listens, as soon as it does; read it before you fork.

    Raises:
        RuntimeError: Ray did not start; its own message is on standard error.
    """
    address = _process.stdout.readline().strip()
    if not address:
        raise RuntimeError("Ray did not start; the reason is printed above")
    return address


def end_ray() -> None:
    """Let Ray end, which takes two seconds, without waiting for it."""
    _process.stdin.close()


def _serve() -> None:
    import ray

    node = ray.init("local", num_cpus=0, include_dashboard=False, object_store_memory=2**30, **QUIET)
    print(node.address_info["gcs_address"], flush=True)
    sys.stdin.read()  # until the benchmark closes its end


if __name__ == "__main__":
    _serve()
else:
    gc.disable()
    sys.modules["vllm"] = None  # type: ignore[assignment]  # as if it were not installed
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    _process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
