# SPDX-License-Identifier: Apache-2.0
"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

PyPI's torchvision is built for CUDA: beside CPU-only torch its C++ operators do not load, and `import torchvision`
stops at the first `register_fake` of an operator that does not exist. Declaring the two schemas first is enough.
Transformers' image and video processors use torchvision's Python transforms only. Can go when PyPI's torchvision wheel
imports beside CPU torch, or where torchvision's own CPU build is installed (then this does nothing).
"""

import torch

_library: torch.library.Library | None = None


def install() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms` unless torch is a CUDA build or they exist. Idempotent."""
    global _library
    if _library is not None or torch.version.cuda is not None or _real_operators_load():
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.impl(name, _unavailable, "CPU")


def _real_operators_load() -> bool:
    import ctypes
    import importlib.util
    import pathlib

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # no torchvision at all: nothing to mend
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
        "torchvision's operators are not loaded: this torchvision is a CUDA build beside CPU torch. "
        "Install torchvision's CPU build if you need nms."
    )
