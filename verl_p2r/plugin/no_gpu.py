# SPDX-License-Identifier: Apache-2.0
"""A run on a machine without a GPU ends with what to set, not with what breaks first.

verl takes a machine without an accelerator for one of NVIDIA's. What fails then depends on the installation:
torchvision's operators, vLLM's libraries, or a wait for GPUs that never come.
"""

import sys
import warnings

TRAINERS = ("verl.trainer.main_ppo", "verl.trainer.sft_trainer")
MESSAGE = (
    "no GPU was found, and VERL_PLATFORM is not set: set VERL_PLATFORM=cpu to train on the CPU; on a machine with a "
    "GPU check its driver, torch's build and CUDA_VISIBLE_DEVICES"
)


def refuse() -> None:
    """End a trainer of verl that could only fail; `import verl` elsewhere, as in Ray's workers, is left alone.

    A trainer of RL whose torch was built for GPUs is warned: it may be on the head of a cluster whose other nodes have
    the GPUs.

    Raises:
        SystemExit: verl swallows other exceptions while it loads a plugin.
    """
    trainer = next((argument for argument in sys.orig_argv if argument in TRAINERS), None)
    if trainer is None:
        return
    import torch
    from verl.plugin.platform import get_platform

    if get_platform().is_available():
        return
    if trainer == TRAINERS[0] and (torch.version.cuda or torch.version.hip):
        warnings.warn(f"{MESSAGE}. If other nodes of this Ray cluster have GPUs, all is well", stacklevel=2)
        return
    sys.exit(f"verl_p2r: {MESSAGE}")
