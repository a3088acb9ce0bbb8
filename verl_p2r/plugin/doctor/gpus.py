# SPDX-License-Identifier: Apache-2.0
"""Checks of the driver, CUDA, the GPUs and their memory, NCCL and flash-attention; each takes facts alone."""

from collections.abc import Iterator

from verl_p2r.plugin.doctor.finding import Finding
from verl_p2r.plugin.doctor.gpu_facts import Driver, GpuFacts, Torch
from verl_p2r.sizes import GIB

OLDEST = (8, 0)  # compute capability: flash-attn and bfloat16 need Ampere or newer
DRIVERS = {12: "525.60", 13: "580.65"}  # the first driver for each major version of CUDA
HELD = 0.05  # share of a GPU's memory in use before a run, above which another program works there
INSTALL = "docs/start/install.md"


def check_gpus(facts: GpuFacts, needs_flash_attention: bool = True) -> Iterator[Finding]:
    """Check everything that a run on GPUs needs. A check whose cause was reported already is left out.

    Args:
        facts: about this machine.
        needs_flash_attention: the model's attention is flash-attn's.
    """
    if facts.torch.hip:
        yield Finding("GPUs", f"torch for HIP {facts.torch.hip}: doctor checks NVIDIA GPUs alone")
        return
    checks = [check_driver(facts.driver), check_cuda(facts.driver, facts.torch), check_devices(facts)]
    for findings in checks:
        made = list(findings)
        yield from made
        if any(finding.remedy and finding.fatal for finding in made):
            return
    yield from check_memory(facts.driver)
    yield from check_nccl(facts)
    yield from check_flash_attention(facts.torch, needs_flash_attention)


def check_driver(driver: Driver) -> Iterator[Finding]:
    """Check that there is a driver that sees a GPU."""
    if "not installed" in driver.error:
        remedy = (
            "on a machine without a GPU set VERL_PLATFORM=cpu; on one with a GPU install its driver; start a "
            "container with `docker run --gpus all`"
        )
        yield Finding("driver", driver.error, remedy)
    elif driver.error:
        yield Finding("driver", driver.error, "reboot, or install the driver again: its module does not work")
    elif not driver.gpus:
        yield Finding("driver", f"{driver.version}, no GPU", "start the container with `docker run --gpus all`")
    else:
        yield Finding("driver", f"{driver.version}, supports CUDA {driver.cuda}")


def check_cuda(driver: Driver, torch: Torch) -> Iterator[Finding]:
    """Check that torch is built for CUDA, of a major version that the driver supports."""
    if error := torch.errors.get("build"):
        yield Finding("torch's CUDA", error, "run `python -c 'import torch'` and fix the error it shows")
        return
    if torch.cuda is None:
        remedy = f"install its CUDA build, as {INSTALL} says; with VERL_PLATFORM=cpu a CPU build is fine"
        yield Finding("torch's CUDA", f"torch {torch.version} is built without CUDA", remedy)
        return
    needed, supported = (int(version.split(".")[0] or 0) for version in (torch.cuda, driver.cuda))
    if needed > supported:
        driver_needed = f" to {DRIVERS[needed]} or newer" if needed in DRIVERS else ""
        yield Finding(
            "torch's CUDA",
            f"{torch.cuda}, but driver {driver.version} supports CUDA {driver.cuda}",
            f"update the driver{driver_needed}, or use an image whose torch is built for CUDA {supported}",
        )
        return
    yield Finding("torch's CUDA", torch.cuda)


def check_devices(facts: GpuFacts) -> Iterator[Finding]:
    """Check that torch sees GPUs, has kernels for them and computes on them."""
    driver, torch, masked = facts.driver, facts.torch, facts.visible
    if error := torch.errors.get("devices"):
        masks = f", or unset CUDA_VISIBLE_DEVICES={masked!r}" if masked is not None else ""
        yield Finding("GPUs", error, f"run `nvidia-smi`; reboot or restart the container if it shows all GPUs{masks}")
        return
    if not torch.capabilities:
        yield Finding(
            "GPUs",
            f"torch sees none of {len(driver.gpus)}",
            f"unset CUDA_VISIBLE_DEVICES={masked!r}" if masked is not None else "reboot or restart the container",
        )
        return
    for capability in sorted(set(torch.capabilities)):
        if remedy := _unsupported(capability, torch):
            yield Finding("GPUs", f"compute capability {capability[0]}.{capability[1]}", remedy)
            return
    if error := torch.errors.get("compute"):
        remedy = "end the programs that nvidia-smi lists; if there are none, reset the GPU: nvidia-smi --gpu-reset"
        yield Finding("GPUs", error, remedy)
        return
    names = sorted({gpu.name for gpu in driver.gpus})
    remedy = ""
    if len(names) > 1 and masked is None:
        remedy = "the slowest or smallest GPU limits a run: choose equal ones with CUDA_VISIBLE_DEVICES"
    yield Finding("GPUs", f"{len(torch.capabilities)} of {len(driver.gpus)}: {', '.join(names)}", remedy, fatal=False)


def _unsupported(capability: tuple[int, int], torch: Torch) -> str:
    """Return why a GPU cannot be used and what to do; empty when it can.

    A binary runs on GPUs of its major version with the same or a higher minor version, and PTX on all newer GPUs.
    """
    if capability < OLDEST:
        return "flash-attn and bfloat16 need compute capability 8.0 (A100, RTX 30) or newer: use another GPU"
    for architecture in torch.architectures:
        kind, _, digits = architecture.partition("_")
        number = digits.rstrip("af")  # sm_90a: for this GPU alone, which has it
        if not number.isdecimal():
            continue
        built = int(number[:-1]), int(number[-1])
        if kind == "sm" and built[0] == capability[0] and built[1] <= capability[1]:
            return ""
        if kind == "compute" and built <= capability:
            return ""
    known = ", ".join(torch.architectures)
    return f"torch {torch.version} has kernels for {known} only: install a build for this GPU"


def check_memory(driver: Driver) -> Iterator[Finding]:
    """Report the memory of the GPUs, and which are in use already."""
    for number, gpu in enumerate(driver.gpus):
        amount = f"{gpu.memory / GIB:.1f} GiB, {gpu.used / GIB:.1f} in use"
        remedy = ""
        if gpu.used > HELD * gpu.memory > 0:
            remedy = "end the programs that nvidia-smi lists: vLLM takes a share of the whole memory, or does not start"
        yield Finding(f"memory of GPU {number}", amount, remedy, fatal=False)


def check_nccl(facts: GpuFacts) -> Iterator[Finding]:
    """Check that torch loads the NCCL it was installed with, and that the GPUs can talk to each other."""
    torch = facts.torch
    if error := torch.errors.get("nccl_version") or torch.errors.get("all_reduce"):
        remedy = (
            "run again with NCCL_DEBUG=INFO and read why; NCCL_P2P_DISABLE=1 helps where GPUs cannot reach each other "
            "directly (virtual machines, PCIe with ACS), NCCL_SOCKET_IFNAME where the wrong network is chosen"
        )
        yield Finding("NCCL", error, remedy)
        return
    remedy = ""
    if facts.nccl_wheel and _release(facts.nccl_wheel) != _release(torch.nccl):
        remedy = (
            f"torch loads another NCCL than the installed {facts.nccl_wheel}: remove the folder with libnccl.so from "
            "LD_LIBRARY_PATH, and unset LD_PRELOAD"
        )
    yield Finding("NCCL", f"{torch.nccl}, all GPUs reached", remedy, fatal=False)


def _release(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:3])


def check_flash_attention(torch: Torch, needed: bool) -> Iterator[Finding]:
    """Check that flash-attn works; verl's default attention is flash_attention_2."""
    error = torch.errors.get("flash_attention")
    if error is None:
        yield Finding("flash-attention", torch.flash_attention)
        return
    missing = "No module named 'flash_attn'" in error
    found = "flash-attn is not installed" if missing else error
    if not needed:
        yield Finding("flash-attention", f"{found}; this run does not use it")
        return
    fix = "install it" if missing else "build or fetch it again for this torch"
    remedy = (
        f"{fix}, as {INSTALL} says; RL runs without it with trainer.p2r.shared_prefix=True "
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"
    )
    yield Finding("flash-attention", found, remedy)
