# SPDX-License-Identifier: Apache-2.0
"""What is read from nvidia-smi and from torch's process, a crash or a hang in the middle of it included."""

import json
import os

import pytest

from verl_p2r.plugin.doctor import gpu_facts, torch_probe
from verl_p2r.plugin.doctor.gpu_facts import Driver, Gpu, driver_of, read_driver, read_torch, torch_of

REPORT = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <driver_version>580.95.05</driver_version>
  <cuda_version>13.0</cuda_version>
  <attached_gpus>2</attached_gpus>
  <gpu id="00000000:04:00.0">
    <product_name>NVIDIA H100 80GB HBM3</product_name>
    <fb_memory_usage>
      <total>81559 MiB</total><reserved>551 MiB</reserved><used>1024 MiB</used><free>79984 MiB</free>
    </fb_memory_usage>
    <bar1_memory_usage><total>131072 MiB</total><used>1 MiB</used></bar1_memory_usage>
  </gpu>
  <gpu id="0000000F:01:00.0">
    <product_name>NVIDIA GB10</product_name>
    <fb_memory_usage><total>N/A</total><used>N/A</used></fb_memory_usage>
  </gpu>
</nvidia_smi_log>
"""
GPUS = (Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, 2**30), Gpu("NVIDIA GB10", 0))


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """`smi(script)`: a stand-in for nvidia-smi, a shell script, on PATH."""

    def make(script: str):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")

    return make


def test_the_drivers_report_is_read(smi, tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    smi(f'[ "$*" = "-q -x" ] && cat {tmp_path}/report.xml')
    assert read_driver() == Driver("580.95.05", "13.0", GPUS)


def test_a_driver_that_fails_is_quoted(smi, monkeypatch):
    smi("echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9")
    assert "could not communicate" in read_driver().error
    smi("exit 3")
    assert read_driver().error == "nvidia-smi ended with 3"
    smi("exec sleep 9")
    monkeypatch.setattr(gpu_facts, "SMI_TIMEOUT_S", 0.2)
    assert read_driver().error == "nvidia-smi did not end within 0.2 s"


def test_a_machine_without_a_driver_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_driver().error == "nvidia-smi is not installed"


def test_a_report_that_is_not_xml_is_an_error():
    assert "cannot be read" in driver_of("<nvidia_smi_log>").error


def line(step: str, **outcome) -> str:
    """A line of the probe's output."""
    return torch_probe.PREFIX + json.dumps({"step": step, **outcome})


BUILD = {"version": "2.11.0", "cuda": "13.0", "hip": None, "architectures": ["sm_90"]}
BEGUN = ["a warning of a library", line("build", value=BUILD), line("devices", value=[[9, 0], [9, 0]])]


def test_outcomes_of_torch_are_read():
    lines = [*BEGUN, line("compute", value=None), line("nccl_version", value="2.28.9"), line("all_reduce", value=None)]
    torch = torch_of([*lines, line("flash_attention", error="ImportError: undefined symbol")], "it ended with 0")
    assert (torch.version, torch.cuda, torch.architectures) == ("2.11.0", "13.0", ("sm_90",))
    assert (torch.capabilities, torch.nccl, torch.flash_attention) == (((9, 0), (9, 0)), "2.28.9", "")
    assert torch.errors == {"flash_attention": "ImportError: undefined symbol"}


def test_the_step_in_which_the_process_ended_has_the_error():
    assert torch_of(BEGUN, "its process ended with -11").errors == {"compute": "its process ended with -11"}
    assert torch_of([], "its process ended with 1: boom").errors == {"build": "its process ended with 1: boom"}


@pytest.fixture
def child(monkeypatch, tmp_path):
    """`child(script)`: torch's process begins, and then runs this shell script."""

    def make(script: str):
        program, begun = tmp_path / "python", tmp_path / "begun"
        begun.write_text("\n".join(BEGUN) + "\n")
        program.write_text(f"#!/bin/sh\ncat {begun}\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(gpu_facts.sys, "executable", str(program))

    return make


def test_a_crash_is_told_from_a_hang_and_both_name_their_step(child, monkeypatch):
    child("echo CUDA is gone >&2; kill -SEGV $$")
    assert read_torch().errors == {"compute": "its process ended with -11: CUDA is gone"}
    child("exec sleep 60")
    monkeypatch.setattr(gpu_facts, "TORCH_TIMEOUT_S", 3)
    assert read_torch().errors == {"compute": "it did not end within 3 s"}


@pytest.mark.slow
def test_the_real_torch_of_a_machine_without_a_gpu():
    import torch

    read = read_torch()
    assert read.version == torch.__version__
    assert read.cuda == torch.version.cuda
    if not torch.cuda.is_available():
        assert read.capabilities == ()
        assert {"devices", "flash_attention"} <= read.errors.keys()
