# SPDX-License-Identifier: Apache-2.0
"""What torch can do on this machine's GPUs. Runs in a fresh process, because a step may crash or hang.

Each step prints one line of JSON when it ends, so that the parent knows which step did not.
"""

import json
from typing import Any

PREFIX = "TORCH"


def build() -> dict[str, Any]:
    """Return torch's version, the CUDA and HIP versions of its build, and the architectures that it has kernels for."""
    import torch

    versions = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    return {**versions, "architectures": torch.cuda.get_arch_list()}


def devices() -> list[list[int]]:
    """Return the compute capability of each visible GPU."""
    import torch

    torch.cuda.init()
    return [list(torch.cuda.get_device_capability(n)) for n in range(torch.cuda.device_count())]


def compute() -> None:
    """Multiply two matrices on each GPU."""
    import torch

    for n in range(torch.cuda.device_count()):
        ones = torch.ones(16, 16, dtype=torch.bfloat16, device=f"cuda:{n}")
        assert (ones @ ones).sum().item() == 16**3, f"wrong product on GPU {n}"


def nccl_version() -> str:
    """Return the version of the NCCL library that is loaded."""
    import torch

    return ".".join(map(str, torch.cuda.nccl.version()[:3]))


def all_reduce() -> None:
    """Sum a tensor over all visible GPUs with NCCL."""
    import torch

    count = torch.cuda.device_count()
    ones = [torch.ones(1024, device=f"cuda:{n}") for n in range(count)]
    torch.cuda.nccl.all_reduce(ones)
    assert all(int(x.sum().item()) == 1024 * count for x in ones), "NCCL returned a wrong sum"


def flash_attention() -> str:
    """Call flash-attn on the first GPU and return its version."""
    import flash_attn
    import torch

    q = torch.ones(1, 8, 1, 64, dtype=torch.bfloat16, device="cuda:0")
    assert flash_attn.flash_attn_func(q, q, q, causal=True).sum().item() == q.numel(), "wrong attention"
    return flash_attn.__version__


STEPS = (build, devices, compute, nccl_version, all_reduce, flash_attention)


def main() -> None:
    """Run all steps and print their outcomes."""
    for step in STEPS:
        try:
            outcome = {"value": step()}
        except Exception as error:
            outcome = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        print(PREFIX + json.dumps({"step": step.__name__, **outcome}), flush=True)
