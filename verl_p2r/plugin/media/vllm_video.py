# SPDX-License-Identifier: Apache-2.0
"""Keeps the times of video frames inside vLLM, through its own registry of multimodal processors.

Stock vLLM under verl has one fault for each way in which a model family reads time; the module named in `PROCESSORS`
describes and repairs it. The code fits vLLM 0.27.1 with transformers 5.10 (CPU) and vLLM 0.24.0 with transformers 5.9.0
(CUDA). Other versions are left alone: under vLLM 0.32 every request with a medium ended in an error.
"""

import importlib
import warnings
from functools import partial
from types import ModuleType

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion
from wrapt import register_post_import_hook

from verl_p2r.media.families import FAMILIES, Time
from verl_p2r.plugin import TESTED_VLLM, shm_tracker

PROCESSORS = {
    Time.SECONDS: "verl_p2r.plugin.media.vllm_seconds",
    Time.TEXT: "verl_p2r.plugin.media.vllm_timestamps",
}


def register() -> None:
    """Entry point `vllm.general_plugins`: runs in every vLLM process and acts where a known model is loaded."""
    import vllm

    shm_tracker.start()  # before vLLM makes its queues and starts the processes of its engine
    if not _is_tested(vllm.__version__):
        warnings.warn(
            f"verl_p2r leaves vLLM {vllm.__version__} as it is, because it is tested with vLLM {TESTED_VLLM} only. "
            "A standalone vLLM server does not need verl_p2r. Rollouts of verl would lose the frame times of videos: "
            f"pip install 'vllm{TESTED_VLLM}' before you train",
            stacklevel=2,
        )
        return
    for family in FAMILIES:
        if (ours := PROCESSORS.get(family.time)) is not None:
            for module, prefix in family.vllm_models:
                register_post_import_hook(partial(_install, ours, prefix), f"vllm.model_executor.models.{module}")


def _install(ours: str, prefix: str, models: ModuleType) -> None:
    importlib.import_module(ours).install(models, prefix)


def _is_tested(version: str) -> bool:
    try:
        return SpecifierSet(TESTED_VLLM).contains(version, prereleases=True)
    except InvalidVersion:  # "dev": a build without tags
        return False
