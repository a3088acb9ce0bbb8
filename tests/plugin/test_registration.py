# SPDX-License-Identifier: Apache-2.0
"""The doors into verl: what a fresh process finds after `import verl`, and what it hears when a door is broken."""

import json
import os
import subprocess
import sys

import pytest

from verl_p2r.plugin import REGISTRATIONS


def python(script: str, **env: str | None) -> subprocess.CompletedProcess:
    """Run a script in a fresh interpreter; `None` takes a variable out of its environment."""
    changed = {**os.environ, **env}
    environ = {name: value for name, value in changed.items() if value is not None}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, check=False)


RESOLVE = """
import json
import verl
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.trainer.ppo.v1 import get_trainer_cls
found = [get_adv_estimator_fn("pa_grpo"), get_reward_manager_cls("p2r")]
found += [get_trainer_cls(name) for name in ("p2r_sync", "p2r_colocate_async", "p2r_separate_async")]
print("FOUND" + json.dumps([f"{thing.__module__}:{thing.__name__}" for thing in found]))
"""


@pytest.mark.slow
def test_every_registered_name_resolves_after_import_verl():
    done = python(RESOLVE)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    assert json.loads(line.removeprefix("FOUND")) == [
        "verl_p2r.plugin.rl.advantage:compute_pa_grpo_advantage",
        "verl_p2r.plugin.rl.reward_manager:P2RRewardManager",
        "verl_p2r.plugin.rl.trainer:P2RTrainerSync",
        "verl_p2r.plugin.rl.trainer:P2RTrainerColocateAsync",
        "verl_p2r.plugin.rl.trainer:P2RTrainerSeparateAsync",
    ]


@pytest.mark.parametrize(
    ("platform", "heavy"), [(None, ["ray", "torch", "verl"]), ("cpu", ["ray", "verl"])], ids=["stock", "cpu"]
)
def test_importing_plugin_loads_no_heavy_packages(platform, heavy):
    """verl loads it in processes that need none of this; only the CPU platform has to patch torch."""
    script = f"import sys, verl_p2r.plugin; print(sorted(set({heavy}) & set(sys.modules)))"
    done = python(script, VERL_PLATFORM=platform)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("version", "warned"), [("0.9.1", False), ("0.10.0", True)])
def test_untested_verl_version_gives_warning(version, warned):
    script = f"import importlib.metadata as m; m.version = lambda _: '{version}'; import verl_p2r.plugin"
    done = python(script, VERL_PLATFORM=None)
    assert done.returncode == 0, done.stderr
    assert ("tested with verl 0.9.1 only, and this is verl 0.10.0" in done.stderr) is warned


WARN = """
import logging
import verl.workers.rollout.vllm_rollout.vllm_async_server  # vLLM's server sets the root logger's level, as in a run
logging.getLogger("verl_p2r.plugin.rl.judge_watch").warning("all verdicts are Yes")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("level", "heard"), [(None, True), ("ERROR", False)])
def test_warnings_are_heard_in_a_process_that_imports_verls_vllm_server(level, heard):
    done = python(WARN, SAGEMAKER_CONTAINER_LOG_LEVEL=level, LOG_LEVEL=None)
    assert done.returncode == 0, done.stderr
    assert ("all verdicts are Yes" in done.stderr) is heard


def test_cpu_platform_is_not_imported_unless_selected():
    script = "import sys, verl_p2r.plugin; print('verl_p2r.plugin.cpu' in sys.modules)"
    assert python(script, VERL_PLATFORM=None).stdout.split() == ["False"]
    assert python(script, VERL_PLATFORM=" CPU ").stdout.split() == ["True"]


BROKEN = """
import importlib, sys
import verl, verl_p2r.plugin
broken = {door: verl_p2r.plugin.REGISTRATIONS[door] for door in %r}
for ours in broken.values():
    sys.modules[ours] = None  # as if its import failed
for door, ours in broken.items():
    try:
        importlib.import_module(door)
        print("SILENT", door)
    except ModuleNotFoundError as error:
        print("LOUD", door, error.name == ours)
"""


DOORS = {
    "engine": ["verl.workers.engine.fsdp.transformer_impl"],  # alone: verl cannot import it again in that process
    "checkpoints": ["verl.utils.checkpoint.checkpoint_handler"],  # alone: verl's trainers open it, too
    "agent loop": ["verl.experimental.agent_loop"],  # alone: verl's trainers open it, too
    "metrics": ["verl.trainer.ppo.metric_utils"],  # alone: likewise
    "others": [
        "verl.trainer.ppo.core_algos",
        "verl.trainer.ppo.v1",
        "verl.experimental.reward_loop.reward_manager",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("which", DOORS)
def test_broken_plugin_module_fails_when_verl_uses_it(which):
    """verl swallows what a plugin raises while it is loaded, so ours raise later, where verl needs them."""
    assert {door for doors in DOORS.values() for door in doors} == REGISTRATIONS.keys()
    done = python(BROKEN % DOORS[which])
    assert done.returncode == 0, done.stderr
    heard = [line for line in done.stdout.splitlines() if line.startswith(("LOUD", "SILENT"))]
    assert heard == [f"LOUD {door} True" for door in DOORS[which]]
