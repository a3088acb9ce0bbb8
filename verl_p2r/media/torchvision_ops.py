# SPDX-License-Identifier: Apache-2.0
"""The only module that imports torchvision, and qwen-vl-utils, which imports it.

PyPI's torchvision is built for CUDA. With a CPU build of torch its C++ operators do not load, and `import torchvision`
fails at the first `register_fake` of a missing operator. Declaring two schemas beforehand is enough, because the image
and video processors of transformers only use torchvision's Python transforms. Remove this when PyPI's torchvision
imports next to CPU torch; with torchvision's own CPU build it does nothing.
"""

from functools import cache
from typing import Any

import torch

_library: torch.library.Library | None = None


@cache
def install() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms` unless torch is a CUDA build or they exist. Idempotent."""
    global _library
    if torch.version.cuda is not None or _real_operators_load():
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.impl(name, _unavailable, "CPU")


def qwen() -> Any:
    """Import the module `qwen_vl_utils.vision_process`."""
    install()
    from qwen_vl_utils import vision_process

    return vision_process


def resize(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize frames in the fixed-point arithmetic that Pillow gives images: bicubic, antialiased.

    Args:
        frames: Shape: (T, 3, H, W), uint8.
        height: height of the result, in pixels.
        width: width of the result, in pixels.

    Returns:
        Shape: (T, 3, height, width), uint8. Frames are resized independently.
    """
    install()
    from torchvision.transforms.v2 import InterpolationMode, functional

    return functional.resize(frames, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)


def _real_operators_load() -> bool:
    import ctypes
    import importlib.util
    import pathlib

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # torchvision is not installed
    library = next(pathlib.Path(spec.origin).parent.glob("_C*.so"), None)
    if library is None:
        return False
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def _unavailable(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    raise RuntimeError(
        "torchvision's operators are not loaded: this torchvision is a CUDA build and torch a CPU build. "
        "Install torchvision's CPU build if you need nms."
    )
