# SPDX-License-Identifier: Apache-2.0
"""Attention over a packed micro-batch in which responses share their prompt, through transformers' own registries.

On CUDA in half precision it is one call of a variable-length kernel, with the query segments [P, R1 … RG] and the key
segments [P, P+R1 … P+RG], which are made by gathering keys and values. The kernel aligns its causal mask to the bottom
right, so a response attends to its whole prefix and causally to itself. Otherwise each segment is one call of torch's
attention.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from verl_p2r.prefix.plan import PrefixPlan, Segment

NAME = "p2r_shared_prefix"
Kernel = Callable[..., Tensor]


class AttentionPlan:
    """A micro-batch's plan with its indices on the model's device; it reaches the layers as a keyword argument.

    Not a dataclass: FSDP1 takes the dataclasses among a module's arguments apart.

    Args:
        plan: where each token of the micro-batch is.
        device: where the model computes.

    Attributes:
        shares: whether any segment attends to a prefix.
        used: whether some layer has attended by this plan.
    """

    def __init__(self, plan: PrefixPlan, device: Any):
        self.segments = plan.segments
        self.shares = any(segment.prefix_size for segment in plan.segments)
        self.used = False
        self._predict = plan.predict.to(device)
        self.keys = plan.key_index().to(device)
        query, key = plan.boundaries()
        self.longest_query, self.longest_key = int(query.diff().max()), int(key.diff().max())
        self.query_boundaries, self.key_boundaries = query.to(device), key.to(device)
        self._masks: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def predicting(self, hidden: Tensor) -> Tensor:
        """Select the hidden states that predict a response token, so that the head makes no logits of the prompt.

        Args:
            hidden: Shape: (1, packed tokens, width).

        Returns:
            Shape: (1, sum of response lengths, width).

        Raises:
            RuntimeError: the layers computed a different attention; every number would be wrong.
        """
        if not self.used:
            raise RuntimeError(
                f"shared_prefix: the language model did not use the attention {NAME!r}. An engine without "
                "shared_prefix in this process has replaced its class: switch it on for actor and reference alike"
            )
        return hidden.index_select(1, self._predict)

    def mask(self, segment: Segment, like: Tensor) -> Tensor:
        """Return the mask that is added to the scores of a segment with a prefix. Shape: (R, P + R).

        Args:
            segment: with a prefix.
            like: a tensor of the mask's device and dtype.
        """
        key = (segment.prefix_size, segment.size, like.dtype)
        if key not in self._masks:
            hidden = like.new_full((segment.size, segment.prefix_size + segment.size), float("-inf"))
            self._masks[key] = hidden.triu(segment.prefix_size + 1)
        return self._masks[key]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prefix: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend with the signature of transformers' attention functions.

    Args:
        module: the attention layer.
        query: Shape: (1, heads, tokens, width).
        key: Shape: (1, key heads, tokens, width).
        value: Shape: (1, key heads, tokens, width).
        attention_mask: None; the plan determines what attends to what.
        scaling: factor of the scores.
        shared_prefix: the plan.
        **kwargs: what transformers passes in addition; not used.

    Returns:
        (Shape: (1, tokens, heads, width), None).

    Raises:
        RuntimeError: without a plan.
    """
    if shared_prefix is None:
        raise RuntimeError(f"the attention {NAME!r} was called without a plan: use the engine's forward_backward_batch")
    shared_prefix.used = True
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return attend_in_one_call(query, key, value, scaling, shared_prefix, varlen_kernel()), None
    return attend_by_segment(query, key, value, scaling, shared_prefix), None


def attend_by_segment(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, plan: AttentionPlan) -> Tensor:
    """Attend with one call of torch's attention for each segment. Shapes as in `attention`."""
    outputs = []
    options = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    for segment in plan.segments:
        q, k, v = (x.narrow(2, segment.start, segment.size) for x in (query, key, value))
        if not segment.prefix_size:
            outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, **options))
            continue
        before = (x.narrow(2, segment.prefix_start, segment.prefix_size) for x in (key, value))
        k, v = (torch.cat(parts, 2) for parts in zip(before, (k, v), strict=True))
        outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=plan.mask(segment, q), **options))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


class _Gather(torch.autograd.Function):
    """Gather tokens by index; the backward pass sums the gradients of a shared token in float32."""

    @staticmethod
    def forward(ctx, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.tokens = len(values)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
        total = wide.new_zeros(ctx.tokens, *grad.shape[1:]).index_add_(0, index, wide)
        return total.to(grad.dtype), None


def attend_in_one_call(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, plan: AttentionPlan, kernel: Kernel
) -> Tensor:
    """Attend with one call of a variable-length kernel.

    Args:
        query: Shape: (1, heads, tokens, width).
        key: Shape: (1, key heads, tokens, width).
        value: Shape: (1, key heads, tokens, width).
        scaling: factor of the scores.
        plan: what attends to what.
        kernel: called with query, key and value of Shape: (tokens, heads, width), the boundaries of the query and of
            the key segments, the longest of each, and the scale. Its mask is causal and aligned to the bottom right.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if plan.shares:
        k, v = _Gather.apply(k, plan.keys), _Gather.apply(v, plan.keys)
    boundaries = (plan.query_boundaries, plan.key_boundaries, plan.longest_query, plan.longest_key)
    return kernel(q, k, v, *boundaries, scaling).unsqueeze(0)


@functools.lru_cache(maxsize=1)
def varlen_kernel() -> Kernel:
    """Find a variable-length kernel: flash-attn's if it is installed, otherwise torch's own.

    Raises:
        RuntimeError: neither is installed.
    """
    try:
        return _flash(importlib.import_module("flash_attn").flash_attn_varlen_func)
    except (ImportError, AttributeError):
        pass
    try:
        return _torch(importlib.import_module("torch.nn.attention.varlen").varlen_attn)
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            "shared_prefix on CUDA needs a variable-length attention kernel: install flash-attn, or a torch that has "
            "torch.nn.attention.varlen with a window size (2.11 or newer)"
        ) from error


def _flash(function: Callable[..., Tensor]) -> Kernel:
    def kernel(q, k, v, query_boundaries, key_boundaries, longest_query, longest_key, scaling):
        sizes = (query_boundaries, key_boundaries, longest_query, longest_key)
        return function(q, k, v, *sizes, softmax_scale=scaling, causal=True)

    return kernel


def _torch(function: Callable[..., Tensor]) -> Kernel:
    names = inspect.signature(function).parameters
    if "window_size" not in names:
        raise ImportError("torch.nn.attention.varlen of a torch before 2.11")
    # torch 2.11 has no such option, and takes fewer key heads than heads.
    more = {"enable_gqa": True} if "enable_gqa" in names else {}

    def kernel(q, k, v, query_boundaries, key_boundaries, longest_query, longest_key, scaling):
        sizes = (query_boundaries, key_boundaries, longest_query, longest_key)
        return function(q, k, v, *sizes, scale=scaling, window_size=(-1, 0), **more)

    return kernel


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
