# SPDX-License-Identifier: Apache-2.0
"""The attention behind a shared prefix on a CUDA device, with its real kernel.

`benchmarks/shared_prefix_gpu.py` compares whole engines there: tests run on the platform `cpu`.
"""

import pytest
import torch
import torch.nn.functional as F

from verl_p2r.plugin.fsdp import attention as shared
from verl_p2r.prefix.plan import PrefixPlan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def by_segment(query, key, value, plan):
    return shared.attend_by_segment(query, key, value, None, plan)


def with_kernel(query, key, value, plan):
    return shared.attention(None, query, key, value, None, shared_prefix=plan)[0]


@pytest.mark.parametrize(("heads", "key_heads", "width"), [(16, 2, 128), (28, 4, 128), (4, 2, 32)])
def test_kernel_is_as_exact_as_torchs_attention(heads, key_heads, width):
    """Against float64, forward and backward: at most 1.2 times the error of torch's attention segment by segment."""
    plan = PrefixPlan([[0, 1, 2], [3], [4, 5]], [300, 300, 300, 7, 65, 65], [341, 428, 301, 80, 66, 130])
    on_device = shared.AttentionPlan(plan, "cuda")
    torch.manual_seed(0)
    shape = (plan.tokens, width)
    inputs = [torch.randn(1, n, *shape, device="cuda", dtype=torch.bfloat16) for n in (heads, key_heads, key_heads)]
    weights = torch.randn(1, plan.tokens, heads, width, device="cuda", dtype=torch.bfloat16)

    def numbers(attend, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        output = attend(*leaves, on_device)
        return [output, *torch.autograd.grad((output * weights.to(dtype)).sum(), leaves)]

    exact = numbers(by_segment, torch.float64)
    plain, kernel = (numbers(attend, torch.bfloat16) for attend in (by_segment, with_kernel))
    for theirs, ours, value in zip(plain, kernel, exact, strict=True):
        assert F.mse_loss(ours.double(), value).sqrt() <= 1.2 * F.mse_loss(theirs.double(), value).sqrt()
