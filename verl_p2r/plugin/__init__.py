# SPDX-License-Identifier: Apache-2.0
"""The entry point `verl.plugins`, which verl loads in every process that imports it.

verl swallows exceptions of a plugin, and it loads plugins in processes that do not need them (vLLM workers, reward
workers). This module therefore imports neither verl nor torch, except torch on the CPU platform, and both where a
trainer looks for an accelerator (`no_gpu`). It only registers import hooks: when verl imports one of its modules, one
of ours is imported and registers with verl's registry. An error in one of ours then surfaces where verl imports the
registry.

| when verl imports                              | we register                                               |
|------------------------------------------------|-----------------------------------------------------------|
| `verl.trainer.ppo.core_algos`                  | the advantage estimator `pa_grpo`                         |
| `verl.trainer.ppo.metric_utils`                | a bootstrap of validation metrics without a loop          |
| `verl.trainer.ppo.v1`                          | the trainers `p2r_{sync,colocate_async,separate_async}` |
| `verl.experimental.reward_loop.reward_manager` | the reward manager `p2r`                                  |
| `verl.experimental.agent_loop`                 | the agent loop `p2r_self_judge`                           |
| `verl.workers.engine.fsdp.transformer_impl`    | the FSDP engine that can freeze the vision tower          |
| `verl.utils.checkpoint.checkpoint_handler`     | a handler whose checkpoints survive a kill at any time    |
| `verl.plugin.platform` (`VERL_PLATFORM=cpu`)   | the platform `cpu` and what it needs                      |

The configs name datasets and the agent loop manager by their import path, without registration.
"""

import importlib
import importlib.metadata
import os
import warnings

from wrapt import register_post_import_hook

TESTED_VERL = "0.9.1"
TESTED_VLLM = ">=0.24,<0.29"
REGISTRATIONS = {
    "verl.trainer.ppo.core_algos": "verl_p2r.plugin.rl.advantage",
    "verl.trainer.ppo.metric_utils": "verl_p2r.plugin.rl.validation",
    "verl.trainer.ppo.v1": "verl_p2r.plugin.rl.trainer",
    "verl.experimental.reward_loop.reward_manager": "verl_p2r.plugin.rl.reward_manager",
    "verl.experimental.agent_loop": "verl_p2r.plugin.rl.self_judge_loop",
    "verl.workers.engine.fsdp.transformer_impl": "verl_p2r.plugin.fsdp.engine",
    "verl.utils.checkpoint.checkpoint_handler": "verl_p2r.plugin.rl.checkpoints",
}


def on_cpu() -> bool:
    """Check whether the user chose the CPU platform."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def _register(door: str, ours: str) -> None:
    register_post_import_hook(lambda _module: importlib.import_module(ours), door)


def _warn_of_another_verl() -> None:
    try:
        found = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        return  # `verl-p2r doctor` says so
    if found != TESTED_VERL:
        warnings.warn(
            f"verl_p2r is tested with verl {TESTED_VERL} only, and this is verl {found}: pip install "
            f"verl=={TESTED_VERL}, or run `verl-p2r doctor` and its tests before you trust a run",
            stacklevel=2,
        )


def _keep_warnings() -> None:
    """Set the root logger's level for a package that vLLM's servers import, unless the user has chosen one.

    `model_hosting_container_standards` sets the root logger and its handlers to ERROR by default, and so would hide all
    warnings of ours in verl's trainer process. verl uses WARNING.
    """
    if "LOG_LEVEL" not in os.environ:
        os.environ.setdefault("SAGEMAKER_CONTAINER_LOG_LEVEL", "WARNING")


_warn_of_another_verl()
_keep_warnings()
for _door, _ours in REGISTRATIONS.items():
    _register(_door, _ours)

if on_cpu():
    importlib.import_module("verl_p2r.plugin.cpu").install()
elif not os.environ.get("VERL_PLATFORM"):
    importlib.import_module("verl_p2r.plugin.no_gpu").refuse()
