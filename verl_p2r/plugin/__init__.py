# SPDX-License-Identifier: Apache-2.0
"""The doors into verl: what `verl.plugins` loads in every process that imports verl.

verl swallows an exception raised while it loads a plugin, and it loads plugins in processes that need none of this
(vLLM workers, reward workers). So this module does not import verl (nor torch, unless on the CPU platform): it only
says "when verl opens this module, run that one of ours", and each of ours registers with verl's own registry as an
import side effect. An error in one of them then surfaces where verl imports the registry, loudly.

| when verl imports                              | we register                                               |
|------------------------------------------------|-----------------------------------------------------------|
| `verl.trainer.ppo.core_algos`                  | the advantage estimator `pa_grpo`                         |
| `verl.trainer.ppo.v1`                          | the trainers `p2r_{sync,colocate_async,separate_async}` |
| `verl.experimental.reward_loop.reward_manager` | the reward manager `p2r`                                  |
| `verl.workers.engine.fsdp.transformer_impl`    | the FSDP engine that can freeze the vision tower          |
| `verl.utils.checkpoint.checkpoint_handler`     | a handler whose checkpoints survive a kill at any time    |
| `verl.plugin.platform` (`VERL_PLATFORM=cpu`)   | the platform `cpu` and what it needs                      |

Datasets and the agent loop manager are named in the configs by their import path; they need no registration.
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
    "verl.trainer.ppo.v1": "verl_p2r.plugin.rl.trainer",
    "verl.experimental.reward_loop.reward_manager": "verl_p2r.plugin.rl.reward_manager",
    "verl.workers.engine.fsdp.transformer_impl": "verl_p2r.plugin.fsdp.engine",
    "verl.utils.checkpoint.checkpoint_handler": "verl_p2r.plugin.rl.checkpoints",
}


def on_cpu() -> bool:
    """Whether the user chose the CPU platform."""
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


_warn_of_another_verl()
for _door, _ours in REGISTRATIONS.items():
    _register(_door, _ours)

if on_cpu():
    importlib.import_module("verl_p2r.plugin.cpu").install()
elif not os.environ.get("VERL_PLATFORM"):
    importlib.import_module("verl_p2r.plugin.no_gpu").refuse()
