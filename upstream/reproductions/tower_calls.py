# SPDX-License-Identifier: Apache-2.0
"""The number of calls of the vision tower depends on the media of a micro-batch, so ranks run different collectives."""

import torch

from reproductions import _tiny

THEN = "verl_p2r/plugin/fsdp/tower.py and vision_inputs.py can go, unless verl still computes equal media repeatedly"
VIDEO, IMAGE = ("video", (2, 4, 4)), ("image", (1, 4, 4))


def fault() -> str | None:
    """Count the calls for a micro-batch with a video, and for one with a video and an image."""
    one, both = _calls(VIDEO), _calls(VIDEO, IMAGE)
    if one == both:
        return None
    return f"{one} call for a video, {both} calls for a video and an image"


def _calls(*media: tuple[str, tuple[int, int, int]]) -> int:
    model, calls = _tiny.model(), []
    hook = model.model.visual.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with torch.no_grad():
            model(**_tiny.inputs(*media))
    finally:
        hook.remove()
    return len(calls)
