# SPDX-License-Identifier: Apache-2.0
"""What verl's Ulysses path of Qwen2-VL and Qwen2.5-VL needs on a CPU: flash-attn's function, and all-to-all on gloo."""

import torch
import torch.distributed as dist
import varlen_reference
from torch import Tensor
from verl.models.transformers import qwen2_vl
from verl.utils import ulysses


def _flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: Tensor,
    max_seqlen_k: Tensor,
    causal: bool = False,
    softmax_scale: float | None = None,
    **_options,
) -> Tensor:
    assert causal
    sizes = (cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k))
    return varlen_reference.attend(q, k, v, *sizes, softmax_scale)


def _all_to_all(outputs: list[Tensor], inputs: list[Tensor], group=None, async_op: bool = False) -> None:
    """gloo has no all-to-all of lists: gather everything, and take this rank's column."""
    assert not async_op
    rank, stacked = dist.get_rank(group), torch.stack(inputs)
    gathered = [torch.empty_like(stacked) for _ in outputs]
    dist.all_gather(gathered, stacked, group=group)
    for output, rows in zip(outputs, gathered, strict=True):
        output.copy_(rows[rank])


def install() -> None:
    """Replace both in this process, and keep float32, which verl would hand to flash-attn as bfloat16."""
    qwen2_vl.flash_attn_varlen_func = _flash_attn_varlen_func
    for option in ("supports_window_size", "supports_deterministic", "use_top_left_mask"):
        setattr(qwen2_vl, f"_flash_{option}", False)
    qwen2_vl.fa_peft_integration_check = lambda query, key, value, target_dtype: (query, key, value)
    ulysses.dist.all_to_all = _all_to_all
