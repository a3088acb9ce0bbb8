# SPDX-License-Identifier: Apache-2.0
"""Ends a run on a machine without a GPU with the setting to change, instead of a later failure.

verl treats a machine without an accelerator as one with an NVIDIA GPU. What fails then depends on the installation:
torchvision's operators, vLLM's libraries, or an endless wait for GPUs.
"""

import sys
import warnings

TRAINERS = ("verl.trainer.main_ppo", "verl.trainer.sft_trainer")
MESSAGE = (
    "no GPU was found, and VERL_PLATFORM is not set: set VERL_PLATFORM=cpu to train on the CPU; on a machine with a "
    "GPU check its driver, torch's build and CUDA_VISIBLE_DEVICES"
)


def refuse() -> None:
    """End a trainer of verl that cannot work; other processes that import verl, such as Ray's workers, go on.

    An RL trainer with a GPU build of torch only gets a warning, because the other nodes of its cluster may have GPUs.

    Raises:
        SystemExit: verl swallows other exceptions while it loads a plugin.
    """
    trainer = next((argument for argument in sys.orig_argv if argument in TRAINERS), None)
    if trainer is None:
        return
    if accelerator_found():
        return
    if trainer == TRAINERS[0] and not cpu_build():
        warnings.warn(f"{MESSAGE}. Ignore this if other nodes of the Ray cluster have GPUs", stacklevel=2)
        return
    sys.exit(f"verl_p2r: {MESSAGE}")


def accelerator_found() -> bool:
    """Whether verl's platform, which VERL_PLATFORM can name, is available here."""
    from verl.plugin.platform import get_platform

    return get_platform().is_available()


def cpu_build() -> bool:
    """Whether torch was built for CPUs only."""
    import torch

    return not (torch.version.cuda or torch.version.hip)
