# SPDX-License-Identifier: Apache-2.0
"""Collects what the driver and torch say about the GPUs of this machine."""

import importlib.metadata as metadata
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_p2r.plugin.doctor import torch_probe

NVIDIA_SMI = ("nvidia-smi", "-q", "-x")
SMI_TIMEOUT_S = 60
TORCH_TIMEOUT_S = 300
MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it.

    Args:
        name: its product name.
        memory: bytes in total; 0 when the driver does not say.
        used: bytes that are in use now.
    """

    name: str
    memory: int
    used: int = 0


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver.

    Args:
        version: its version.
        cuda: the newest version of CUDA that it supports.
        gpus: the GPUs that it sees.
        error: why `nvidia-smi` could not say; empty when it could.
    """

    version: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Torch:
    """What torch can do in a fresh process.

    Args:
        version: its version.
        cuda: the CUDA version of its build; None for a build for CPUs or AMD.
        hip: the HIP version of its build; None for other builds.
        architectures: what it has kernels for, such as `sm_90` (binaries) and `compute_90` (PTX for newer GPUs).
        capabilities: compute capability of each visible GPU.
        nccl: version of the NCCL library that it loads.
        flash_attention: version of flash-attn; empty when it does not work.
        errors: for each step of `torch_probe` that failed, why.
    """

    version: str = ""
    cuda: str | None = None
    hip: str | None = None
    architectures: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    nccl: str = ""
    flash_attention: str = ""
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GpuFacts:
    """Everything that the checks of GPUs need to know.

    Args:
        driver: the driver.
        torch: torch.
        visible: the value of CUDA_VISIBLE_DEVICES; None when it is not set.
        nccl_wheel: version of the installed NCCL package; None without one.
    """

    driver: Driver
    torch: Torch
    visible: str | None = None
    nccl_wheel: str | None = None


def collect() -> GpuFacts:
    """Ask the driver, and torch in a fresh process."""
    return GpuFacts(read_driver(), read_torch(), os.environ.get("CUDA_VISIBLE_DEVICES"), nccl_wheel())


def read_driver() -> Driver:
    """Ask `nvidia-smi`."""
    try:
        done = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False)
    except FileNotFoundError:
        return Driver(error="nvidia-smi is not installed")
    except subprocess.TimeoutExpired:
        return Driver(error=f"nvidia-smi did not end within {SMI_TIMEOUT_S} s")
    if done.returncode:
        said = (done.stdout.strip() or done.stderr.strip() or f"nvidia-smi ended with {done.returncode}").splitlines()
        return Driver(error=said[0])
    return driver_of(done.stdout)


def driver_of(report: str) -> Driver:
    """Read the report of `nvidia-smi -q -x`.

    Args:
        report: its XML.
    """
    try:
        root = ET.fromstring(report)
    except ET.ParseError as error:
        return Driver(error=f"the report of nvidia-smi cannot be read: {error}")
    gpus = [
        Gpu(
            gpu.findtext("product_name", "unknown"),
            _bytes(gpu.findtext("fb_memory_usage/total", "")),
            _bytes(gpu.findtext("fb_memory_usage/used", "")),
        )
        for gpu in root.findall("gpu")
    ]
    return Driver(root.findtext("driver_version", ""), root.findtext("cuda_version", ""), tuple(gpus))


def _bytes(text: str) -> int:
    """Read `81559 MiB`; GPUs that share the memory of the host say `N/A`."""
    number, _, unit = text.partition(" ")
    return int(number) * MIB if number.isdecimal() and unit == "MiB" else 0


def read_torch() -> Torch:
    """Run `torch_probe` in a fresh process."""
    command = [sys.executable, "-c", f"from {torch_probe.__name__} import main; main()"]
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        try:
            ended = subprocess.run(command, stdout=stdout, stderr=stderr, timeout=TORCH_TIMEOUT_S, check=False)
            end = f"its process ended with {ended.returncode}"
        except subprocess.TimeoutExpired:
            end = f"it did not end within {TORCH_TIMEOUT_S} s"
        for file in (stdout, stderr):
            file.seek(0)
        said = stderr.read().strip().splitlines()
        return torch_of(stdout.read().splitlines(), f"{end}: {said[-1]}" if said else end)


def torch_of(lines: Iterable[str], end: str) -> Torch:
    """Read the output of `torch_probe`.

    Args:
        lines: lines of its output; others than the probe's own are ignored.
        end: how its process ended, which is the error of the first step without a line.
    """
    read = (json.loads(line.removeprefix(torch_probe.PREFIX)) for line in lines if line.startswith(torch_probe.PREFIX))
    outcomes = {outcome["step"]: outcome for outcome in read}
    errors = {step: outcome["error"] for step, outcome in outcomes.items() if "error" in outcome}
    missing = next((step.__name__ for step in torch_probe.STEPS if step.__name__ not in outcomes), None)
    if missing:
        errors[missing] = end

    def value(step: str, otherwise: Any) -> Any:
        return outcomes.get(step, {}).get("value", otherwise)

    build = value("build", {})
    return Torch(
        version=build.get("version", ""),
        cuda=build.get("cuda"),
        hip=build.get("hip"),
        architectures=tuple(build.get("architectures", ())),
        capabilities=tuple((major, minor) for major, minor in value("devices", [])),
        nccl=value("nccl_version", ""),
        flash_attention=value("flash_attention", ""),
        errors=errors,
    )


def nccl_wheel() -> str | None:
    """Return the version of the installed NCCL package."""
    for name in ("nvidia-nccl-cu13", "nvidia-nccl-cu12"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
