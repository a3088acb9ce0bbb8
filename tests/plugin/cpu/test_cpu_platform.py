# SPDX-License-Identifier: Apache-2.0
"""The CPU platform: whole, absent unless asked for, and each of its shims does its one thing."""

import importlib.metadata as metadata
import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry, get_platform
from verl.workers.rollout.replica import RolloutReplicaRegistry

from verl_p2r.media import torchvision_ops
from verl_p2r.plugin.cpu import vllm_metadata
from verl_p2r.plugin.cpu.platform import ROLLOUT_ENV, PlatformCPU


def fresh(program: str, **environment: str) -> list[str]:
    """The lines a fresh interpreter prints, without this process's choice of platform."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("VERL_PLATFORM", "VERL_ENGINE_DEVICE")}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**inherited, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_cpu_platform_is_selected_and_complete():
    assert isinstance(get_platform(), PlatformCPU)
    assert PlatformRegistry.get("cpu") is PlatformCPU
    assert PlatformBase.__abstractmethods__ <= set(vars(PlatformCPU))
    assert get_platform().device_name == "cpu"
    assert get_platform().is_available()
    assert not get_platform().is_platform_available(use_smi_check=True)  # never found by probing


def test_cpu_platform_methods_work_without_device():
    platform = PlatformCPU()
    platform.set_device(0), platform.synchronize(), platform.empty_cache(), platform.set_allocator_settings("x")
    platform.profiler_start(), platform.profiler_stop(), platform.cudart()
    with platform.nvtx_range("step"):
        pass
    platform.manual_seed(3)
    first = torch.rand(1)
    platform.manual_seed_all(3)
    assert torch.equal(torch.rand(1), first)
    assert (platform.current_device(), platform.device_count()) == ("cpu", 1)
    assert platform.get_device_capability() == (None, None)
    assert platform.communication_backend_name() == "gloo"
    assert not platform.is_ipc_supported()
    assert (platform.ray_resource_name(), platform.ray_resource_options(1.0)) == ("GPU", {"num_gpus": 1.0})


def test_cpu_device_module_has_torch_cuda_calls_used_by_verl():
    device = PlatformCPU.device_module
    assert not device.is_available()
    free, total = device.mem_get_info()
    assert 0 < free <= total
    assert 0 < device.memory_allocated() == device.max_memory_allocated() <= total
    state = device.get_rng_state()
    first = torch.rand(1)
    device.set_rng_state(state)
    assert torch.equal(torch.rand(1), first)
    for name in ("set_device", "synchronize", "empty_cache", "ipc_collect", "reset_peak_memory_stats"):
        assert getattr(device, name)() is None
    assert callable(device.current_stream)  # torch.cpu's own calls are kept
    assert not hasattr(torch.cpu, "mem_get_info")  # and torch.cpu itself is untouched


def test_user_environment_overrides_cpu_rollout_defaults(monkeypatch):
    for name in ROLLOUT_ENV:
        monkeypatch.delenv(name, raising=False)
    assert PlatformCPU().rollout_env_vars() == ROLLOUT_ENV
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert PlatformCPU().rollout_env_vars() == {**ROLLOUT_ENV, "VLLM_CPU_KVCACHE_SPACE": "7"}


@pytest.mark.slow
def test_cpu_platform_patches_nothing_unless_selected():
    program = """
import os, sys
import verl_p2r.plugin
import verl.utils.distributed, verl.plugin.platform as platform
import torch.distributed as dist
loaded = [name for name in sys.modules if name.startswith("verl_p2r.plugin.cpu")]
print(loaded, platform.PlatformRegistry.get("cpu"), "VERL_ENGINE_DEVICE" in os.environ)
print(dist.init_process_group.__module__, [f for f in sys.meta_path if f.__module__.startswith("verl_p2r.")])
from verl_p2r.plugin.cpu import vllm_platform  # vLLM loads this entry point on every platform
print(vllm_platform(), [name for name in sys.modules if name.startswith("verl_p2r.plugin.cpu.")])
"""
    first, second, third = fresh(program)[-3:]
    assert first == "[] None False"
    assert second == "torch.distributed.distributed_c10d []"
    assert third == "None []"


@pytest.mark.slow
def test_process_group_starts_despite_duplicate_gloo_backend(tmp_path):
    program = """
import torch, torch.distributed as dist
from verl.utils.distributed import initialize_global_process_group_ray
from verl_p2r.plugin.cpu import patches
patched = dist.init_process_group
patches.apply()
print(dist.init_process_group is patched)
try:
    patched.__wrapped__("cpu:gloo,cpu:gloo", rank=0, world_size=1, init_method="STORE-1")
except ValueError as error:
    print("stock:", str(error).splitlines()[0])
initialize_global_process_group_ray()
total = torch.ones(2)
dist.all_reduce(total)
print(dist.get_backend(), dist.get_world_size(), total.tolist())
dist.destroy_process_group()
""".replace("STORE", f"file://{tmp_path}/store")
    lines = fresh(program, VERL_PLATFORM="cpu", DIST_INIT_METHOD=f"file://{tmp_path}/store-2")
    assert lines[-3] == "True"  # applied once
    assert lines[-2].startswith("stock: Duplicate device type cpu")
    assert lines[-1] == "cpu:gloo 1 [1.0, 1.0]"


def distribution(folder, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nVersion: in the text\n")


@pytest.mark.parametrize("version", ["1.2.3", "1.2.3+abc"])
def test_vllm_cpu_package_is_reported_as_vllm(tmp_path, monkeypatch, version):
    distribution(tmp_path, "vllm-cpu", version)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert metadata.version("vllm") == "1.2.3+cpu"
    assert metadata.metadata("vllm")["Name"] == "vllm"
    assert metadata.version("vllm-cpu") == version
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("vllm-gpu")
    assert [d.metadata["Name"] for d in metadata.distributions()] == ["vllm-cpu"]  # no phantom in listings


def test_installed_vllm_takes_precedence_over_vllm_cpu(tmp_path, monkeypatch):
    distribution(tmp_path, "vllm-cpu", "1.2.3")
    distribution(tmp_path, "vllm", "4.5.6")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert metadata.version("vllm") == "4.5.6"


def test_vllm_is_missing_without_vllm_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("vllm")


def test_the_metadata_finder_is_installed_once_and_last():
    vllm_metadata.install()
    assert sys.meta_path.count(vllm_metadata._Finder) == 1
    assert importlib.util.find_spec("vllm_that_does_not_exist") is None


def test_torchvision_imports_and_missing_operators_explain_themselves():
    import torchvision.transforms.v2.functional as functional

    assert functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape == (3, 4, 4)
    torchvision_ops.install()  # idempotent: a second definition of an operator would raise
    with pytest.raises(RuntimeError, match="Install torchvision's CPU build"):
        torchvision_ops._unavailable(torch.zeros(1, 4), torch.zeros(1), 0.5)


@pytest.mark.slow
def test_cpu_vllm_server_and_worker_extension_are_registered():
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

    replica = RolloutReplicaRegistry.get("vllm")
    assert replica.__name__ == "CPUvLLMReplica"
    from verl_p2r.plugin.cpu.vllm_replica import CPUvLLMHttpServer

    module, name = CPUvLLMHttpServer._get_worker_extension_cls(None).rsplit(".", 1)
    extension = getattr(importlib.import_module(module), name)
    assert issubclass(extension, vLLMColocateWorkerExtension)
    with pytest.raises(ValueError, match="lora_rank=0"):
        extension.update_weights_from_ipc(None, peft_config={"r": 8})


@pytest.mark.slow
def test_trainer_and_server_name_the_weight_socket_by_run(monkeypatch):
    from verl.workers.rollout.base import get_rollout_class
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

    from verl_p2r.plugin.cpu import weight_socket
    from verl_p2r.plugin.cpu.vllm_replica import CPUvLLMHttpServer

    sizes = dict.fromkeys((f"{name}_parallel_size" for name in ("tensor_model", "pipeline_model", "data")), 1)
    config = SimpleNamespace(**sizes, layered_summon=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("RAY_LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("VERL_REPLICA_RANK", "0")
    monkeypatch.setenv("VERL_RAY_JOB_ID", "01000000")
    monkeypatch.setattr(vLLMHttpServer, "__init__", lambda self: None)
    sockets = []
    for port in (6379, 40123):  # each run starts a Ray cluster, whose first job is 01000000
        context = SimpleNamespace(get_job_id=lambda: "01000000", gcs_address=f"10.0.0.1:{port}")
        monkeypatch.setattr(ray, "get_runtime_context", lambda context=context: context)
        sender = get_rollout_class("vllm")(config, None, None)
        assert isinstance(sender, weight_socket.CPUServerAdapter)
        CPUvLLMHttpServer()  # sets the environment that its workers inherit
        worker = SimpleNamespace(local_rank=0, model_runner=None)
        assert vLLMColocateWorkerExtension._get_zmq_handle(worker) == sender.zmq_handle
        sockets.append(sender.zmq_handle)
    assert len(set(sockets)) == 2
