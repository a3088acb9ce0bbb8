# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities from logits without a loop over tokens, where verl does not use flash-attn's cross-entropy.

`verl.utils.torch_functional.logprobs_from_logits_v2` of verl 0.9.1 runs several kernels for each token, which took
longer than the layers of a 3B model on an H200. For logits in half precision, and without CUDA's autocast, it also
rounds the results to it. No registry or config key reaches that function, so this module replaces it. Remove this file
when verl's function has no such loop.

verl calls it without flash-attn, and with `VERL_DISABLE_FLASH_ATTN_CE=1`, which `full_determinism` sets. Equal logits
give equal results here, too, but the last bits of a row can depend on how many rows are in its block.
"""

import functools

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from verl.utils import torch_functional

GPU_VALUES, CPU_VALUES = 2**26, 2**20
"""Logits in one block: enough to fill a GPU, or what a CPU's cache holds."""


class _LogProbs(torch.autograd.Function):
    """Keeps the logits and one number a token for the backward pass, in which each block is computed again."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        blocks = logits.split(_rows(logits))
        totals = torch.cat([block.to(wide).logsumexp(-1) for block in blocks])
        ctx.save_for_backward(logits, labels, totals)
        return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).to(wide) - totals

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        logits, labels, totals = ctx.saved_tensors
        made = torch.empty_like(logits)
        rows = _rows(logits)
        parts = (x.split(rows) for x in (made, logits, labels, totals, grad))
        for out, block, label, total, weight in zip(*parts, strict=True):
            shares = (block - total.unsqueeze(-1)).exp_().neg_()
            shares.scatter_add_(-1, label.unsqueeze(-1), torch.ones_like(total).unsqueeze(-1))
            out.copy_(shares.mul_(weight.unsqueeze(-1)))
        return made, None


def _rows(logits: Tensor) -> int:
    values = CPU_VALUES if logits.device.type == "cpu" else GPU_VALUES
    return max(1, values // logits.shape[-1])


def logprobs_from_logits_v2(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the log-probability of each label.

    Args:
        logits: Shape: (..., vocabulary).
        labels: Shape: (...,), int64.

    Returns:
        Shape: (...,), in float32 for logits in half precision, otherwise of the logits' dtype.
    """
    flat = _LogProbs.apply(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    return flat.view(labels.shape)


verls_log_probs = torch_functional.logprobs_from_logits_v2
functools.update_wrapper(logprobs_from_logits_v2, verls_log_probs, assigned=(), updated=())  # for `hooks.py`
torch_functional.logprobs_from_logits_v2 = logprobs_from_logits_v2
