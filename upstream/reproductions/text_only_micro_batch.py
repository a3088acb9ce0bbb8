# SPDX-License-Identifier: Apache-2.0
"""A micro-batch of text crashes Qwen2-VL and Qwen2.5-VL, and the padding rows of a batch are text."""

import torch

from reproductions import _tiny

THEN = "the blank image in verl_p2r/plugin/fsdp/tower.py is not needed for this crash any more"


def fault() -> str | None:
    """Run the model, as verl patches it, on a row without media."""
    try:
        with torch.no_grad():
            _tiny.model()(**_tiny.inputs())
    except AttributeError as error:
        return f"AttributeError: {error}"
    return None
