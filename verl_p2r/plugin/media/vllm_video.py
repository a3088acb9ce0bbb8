# SPDX-License-Identifier: Apache-2.0
"""Keeps the times of video frames inside vLLM, through its own registry of multimodal processors.

vLLM under verl has one fault for each way in which a model family reads time; the module named in `REPAIRS` describes
and repairs it. A repair is installed only in versions of vLLM that it fits. It fits vLLM 0.27.1 with transformers 5.10
(CPU) and vLLM 0.24.0 with transformers 5.9.0 (CUDA). Elsewhere a model of the family loads with a warning, or without
one in versions that need no repair.
"""

import importlib
import warnings
from dataclasses import dataclass
from functools import partial
from types import ModuleType

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version
from wrapt import register_post_import_hook

from verl_p2r.media.families import FAMILIES, Time
from verl_p2r.plugin import TESTED_VLLM, shm_tracker


@dataclass(frozen=True)
class Repair:
    """A repair of a fault of vLLM.

    Args:
        module: our module with its function `install`.
        fits: versions of vLLM that it fits.
        loses: what a rollout of verl does without the repair.
        needless: versions of vLLM without the fault; None when there are none.
    """

    module: str
    fits: str
    loses: str
    needless: str | None = None


REPAIRS = {
    Time.SECONDS: Repair(
        "verl_p2r.plugin.media.vllm_seconds", TESTED_VLLM, "loses the frame times of its videos", needless=">=0.31"
    ),
    Time.TEXT: Repair(
        "verl_p2r.plugin.media.vllm_timestamps", TESTED_VLLM, "shows the model the timestamps of its videos twice"
    ),
}


def register() -> None:
    """Entry point `vllm.general_plugins`: runs in every vLLM process and acts where a known model is loaded."""
    import vllm

    shm_tracker.start()  # before vLLM makes its queues and starts the processes of its engine
    for family in FAMILIES:
        if (repair := REPAIRS.get(family.time)) is not None and not _is_in(vllm.__version__, repair.needless):
            act = partial(_install, repair) if _is_in(vllm.__version__, repair.fits) else partial(_step_aside, repair)
            for module, prefix in family.vllm_models:
                register_post_import_hook(partial(act, prefix), f"vllm.model_executor.models.{module}")


def _install(repair: Repair, prefix: str, models: ModuleType) -> None:
    importlib.import_module(repair.module).install(models, prefix)


def _step_aside(repair: Repair, prefix: str, _models: ModuleType) -> None:
    import vllm

    warnings.warn(
        f"verl_p2r leaves {prefix} of vLLM {vllm.__version__} as it is, because its processor fits vLLM {repair.fits} "
        f"only. A standalone server does not need it. Without it a rollout of verl {repair.loses}: "
        f"pip install 'vllm{repair.fits}' before you train",
        stacklevel=2,
    )


def _is_in(version: str, versions: str | None) -> bool:
    """Return whether a version is in a range; a pre-release counts as its release."""
    if versions is None:
        return False
    try:
        return SpecifierSet(versions).contains(Version(version).base_version, prereleases=True)
    except InvalidVersion:  # "dev": a build without tags
        return False
