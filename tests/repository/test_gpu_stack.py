# SPDX-License-Identifier: Apache-2.0
"""The GPU stack without a GPU: the extra `gpu` is verl's own, resolves for Linux, and is what the lock file holds."""

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

UV = Path(sys.executable).with_name("uv")  # the one of this environment, which need not be active
LOCK = ROOT / "requirements" / "gpu.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
NO_REGISTRY = re.compile(r"dns error|error sending request|could not connect", re.IGNORECASE)


def locked() -> dict[str, str]:
    """Package → version of the lock file."""
    lines = [line.partition("==") for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in lines}


def of_verl(*extras: str) -> Iterator[Requirement]:
    """verl's own requirements for some extras, as its metadata lists them; an extra may name others."""
    for text in importlib.metadata.requires("verl") or []:
        requirement = Requirement(text)
        marker = str(requirement.marker or "")
        if any(marker == f'extra == "{extra}"' for extra in extras):
            if requirement.name == "verl":
                yield from of_verl(*requirement.extras)
            else:
                yield requirement


def test_the_extra_is_verls_own():
    (requirement,) = map(Requirement, EXTRAS["gpu"])
    assert (requirement.name, requirement.extras, str(requirement.specifier)) == ("verl", {"vllm", "fsdp"}, "==0.9.1")


def test_the_lock_holds_what_verl_pins():
    pins, requirements = locked(), list(of_verl("vllm", "fsdp"))
    assert {"vllm", "torch", "flash-attn", "liger-kernel", "cupy-cuda13x"} <= {r.name for r in requirements}
    wrong = [str(r) for r in requirements if not r.specifier.contains(pins[canonicalize_name(r.name)])]
    assert wrong == []


def test_the_extra_without_flash_attention_lacks_it_alone():
    extra = [Requirement(text) for text in EXTRAS["gpu-torch-attention"]]
    (verl,) = [r for r in extra if r.name == "verl"]
    ours = {(r.name, str(r.specifier)) for r in (*extra, *of_verl(*verl.extras)) if r.name != "verl"}
    whole = {(r.name, str(r.specifier)) for r in of_verl("vllm", "fsdp")}
    assert {name for name, _ in whole - ours} == {"flash-attn", "flash-linear-attention", "trl"}
    assert ours <= whole


def test_the_metadata_written_for_uv_are_those_of_the_pinned_flash_attention():
    (written,) = PROJECT["tool"]["uv"]["dependency-metadata"]
    (pinned,) = [r for r in of_verl("fsdp") if r.name == "flash-attn"]
    assert pinned.specifier.contains(written["version"])
    assert written["requires-dist"] == ["torch", "einops"]  # install_requires of its setup.py


def test_the_image_installs_the_extra_over_what_it_holds():
    text = (ROOT / "docker" / "Dockerfile.gpu").read_text()
    assert '".[gpu]"' in text
    pins = locked()
    for name, version in re.findall(r"'\^([a-z]+)==([0-9\\.]+)'", text):
        assert pins[name].startswith(version.replace("\\", "").rstrip("."))
    assert f"flash[-_]attn=={pins['flash-attn']}" in text.replace("\\", "")


@pytest.mark.slow
@pytest.mark.skipif(not UV.exists(), reason="uv is not installed: make .venv/installed")
@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_extra_resolves_for_linux_and_cuda_to_the_lock(python, tmp_path):
    out = tmp_path / "resolved.txt"
    # From an empty environment: nothing that is installed here has a say.
    command = [str(UV), "pip", "compile", "pyproject.toml", "--extra=gpu", f"--constraint={LOCK}", "--no-annotate"]
    command += ["--python-platform=x86_64-manylinux_2_31", f"--python-version={python}", f"--output-file={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and NO_REGISTRY.search(done.stderr):
        pytest.skip("the package registry cannot be reached")
    assert done.returncode == 0, done.stderr
    assert set(_pins(out)) == set(_pins(LOCK))


def _pins(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if "==" in line and not line.lstrip().startswith("#")]
