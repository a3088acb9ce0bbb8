# SPDX-License-Identifier: Apache-2.0
"""The checks of GPUs on made-up machines: a sound one is clean, and each planted fault is the one that is reported."""

from dataclasses import replace

import pytest

from verl_p2r.plugin.doctor.gpu_facts import Driver, Gpu, GpuFacts, Torch
from verl_p2r.plugin.doctor.gpus import check_gpus

GIB = 2**30
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, used=GIB // 2)
BUILT_FOR = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
DRIVER = Driver("580.95.05", "13.0", (H100,) * 8)
TORCH = Torch("2.11.0+cu130", "13.0", None, BUILT_FOR, ((9, 0),) * 8, "2.28.9", "2.8.3")
SOUND = GpuFacts(DRIVER, TORCH, nccl_wheel="2.28.9")


def driver(**changes) -> GpuFacts:
    """The sound machine with another driver."""
    return replace(SOUND, driver=replace(DRIVER, **changes))


def torch(**changes) -> GpuFacts:
    """The sound machine with another torch."""
    return replace(SOUND, torch=replace(TORCH, **changes))


def test_a_sound_machine_is_clean():
    findings = list(check_gpus(SOUND))
    assert [finding for finding in findings if finding.remedy] == []
    shown = {finding.what: finding.found for finding in findings}
    assert shown["driver"] == "580.95.05, supports CUDA 13.0"
    assert shown["torch's CUDA"] == "13.0"
    assert shown["GPUs"] == "8 of 8: NVIDIA H100 80GB HBM3"
    assert shown["memory of GPU 7"] == "80.0 GiB, 0.5 in use"
    assert shown["NCCL"] == "2.28.9, all GPUs reached"
    assert shown["flash-attention"] == "2.8.3"


MISMATCH = "Failed to initialize NVML: Driver/library version mismatch"
FAULTS = {
    "no driver": (Driver(error="nvidia-smi is not installed"), "driver", "not installed", "--gpus all"),
    "broken driver": (Driver(error=MISMATCH), "driver", "mismatch", "reboot"),
    "container without GPUs": (Driver("580.95.05", "13.0"), "driver", "no GPU", "docker run --gpus all"),
    "old driver": (
        driver(version="550.54", cuda="12.4"),
        "torch's CUDA",
        "13.0, but driver 550.54 supports CUDA 12.4",
        "update the driver to 580.65 or newer",
    ),
    "broken torch": (torch(errors={"build": "ImportError: libcudart"}), "torch's CUDA", "libcudart", "import torch"),
    "torch for a CPU": (
        torch(version="2.11.0+cpu", cuda=None),
        "torch's CUDA",
        "torch 2.11.0+cpu is built without CUDA",
        "install its CUDA build",
    ),
    "masked GPUs": (
        replace(torch(capabilities=()), visible=""),
        "GPUs",
        "torch sees none of 8",
        "unset CUDA_VISIBLE_DEVICES=''",
    ),
    "lost GPU": (torch(errors={"devices": "RuntimeError: CUDA unknown error"}), "GPUs", "unknown error", "reboot"),
    "old GPU": (torch(capabilities=((7, 0),)), "GPUs", "compute capability 7.0", "8.0 (A100, RTX 30) or newer"),
    "GPU newer than torch": (
        torch(architectures=("sm_80", "sm_90"), capabilities=((9, 0), (12, 0))),
        "GPUs",
        "compute capability 12.0",
        "kernels for sm_80, sm_90 only",
    ),
    "GPU that does not compute": (
        torch(errors={"compute": "AcceleratorError: CUDA error: all CUDA-capable devices are busy"}),
        "GPUs",
        "busy",
        "end the programs",
    ),
    "GPU in use": (
        driver(gpus=(H100, replace(H100, used=40 * GIB))),
        "memory of GPU 1",
        "80.0 GiB, 40.0 in use",
        "end the programs that nvidia-smi lists",
    ),
    "unequal GPUs": (
        driver(gpus=(H100, Gpu("NVIDIA T4", 16 * GIB))),
        "GPUs",
        "NVIDIA H100 80GB HBM3, NVIDIA T4",
        "CUDA_VISIBLE_DEVICES",
    ),
    "GPUs that do not reach each other": (
        torch(errors={"all_reduce": "it did not end within 300 s"}),
        "NCCL",
        "did not end",
        "NCCL_P2P_DISABLE=1",
    ),
    "another NCCL": (torch(nccl="2.21.5"), "NCCL", "2.21.5", "the installed 2.28.9: remove the folder"),
    "no flash-attn": (
        torch(errors={"flash_attention": "ModuleNotFoundError: No module named 'flash_attn'"}),
        "flash-attention",
        "flash-attn is not installed",
        "install it, as docs/start/install.md says",
    ),
    "flash-attn of another torch": (
        torch(errors={"flash_attention": "ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c104"}),
        "flash-attention",
        "undefined symbol",
        "build or fetch it again for this torch",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_the_one_that_is_reported(fault):
    facts, what, found, remedy = FAULTS[fault]
    facts = facts if isinstance(facts, GpuFacts) else replace(SOUND, driver=facts)
    (finding,) = [finding for finding in check_gpus(facts) if finding.remedy]
    assert finding.what == what
    assert found in finding.found
    assert remedy in finding.remedy
    warnings = ("GPU in use", "unequal GPUs", "another NCCL")
    assert finding.fatal is (fault not in warnings)


def test_a_run_without_flash_attention_does_not_need_it():
    facts = torch(errors={"flash_attention": "ModuleNotFoundError: No module named 'flash_attn'"})
    findings = list(check_gpus(facts, needs_flash_attention=False))
    assert [finding for finding in findings if finding.remedy] == []
    assert findings[-1].found == "flash-attn is not installed; this run does not use it"


@pytest.mark.parametrize(
    ("built_for", "capability"),
    [
        (("sm_80",), (8, 9)),  # binaries of the same major version and a lower minor one
        (("sm_90a",), (9, 0)),
        (("sm_80", "compute_80"), (12, 1)),  # PTX is compiled for any newer GPU
    ],
)
def test_kernels_of_a_close_architecture_are_enough(built_for, capability):
    facts = torch(architectures=built_for, capabilities=(capability,))
    assert not any(finding.remedy for finding in check_gpus(facts))


def test_unequal_gpus_are_fine_when_the_user_chose_some():
    facts = replace(driver(gpus=(H100, Gpu("NVIDIA T4", 16 * GIB))), visible="0")
    assert not any(finding.remedy for finding in check_gpus(facts))


def test_gpus_of_amd_are_left_alone():
    (finding,) = check_gpus(GpuFacts(Driver(error="nvidia-smi is not installed"), Torch(hip="6.4")))
    assert "HIP 6.4" in finding.found
    assert not finding.remedy
