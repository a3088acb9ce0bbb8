# SPDX-License-Identifier: Apache-2.0
"""The monkeypatch that a CPU needs.

verl 0.9.1 (`utils/distributed.py`) builds the process group's backend as `f"cpu:gloo,{device}:{backend}"`. On a CPU
that is "cpu:gloo,cpu:gloo", which torch rejects as naming a device twice, and no option changes the string. Remove
this when verl no longer names the same pair twice.
"""

import functools

import torch.distributed as dist


def apply() -> None:
    """Drop repeated pairs from the backend string given to `init_process_group`. Idempotent."""
    original = dist.init_process_group
    if hasattr(original, "__wrapped_by_verl_p2r__"):
        return

    @functools.wraps(original)
    def init_process_group(backend=None, *args, **kwargs):
        if isinstance(backend, str):
            backend = ",".join(dict.fromkeys(backend.split(",")))
        return original(backend, *args, **kwargs)

    init_process_group.__wrapped_by_verl_p2r__ = True  # type: ignore[attr-defined]
    dist.init_process_group = init_process_group
