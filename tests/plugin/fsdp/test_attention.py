# SPDX-License-Identifier: Apache-2.0
"""Attention behind a shared prefix against the attention of each row alone, in float64, forward and backward.

A plain-torch kernel with the contract of a GPU's variable-length kernel stands in for the real one.
"""

import math

import pytest
import torch
import varlen_reference

from verl_p2r.plugin.fsdp import attention as shared
from verl_p2r.prefix.plan import PrefixPlan

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
GROUPS = {
    "a group": ([[0, 1, 2]], [6, 6, 6], [9, 7, 12]),
    "groups, single rows and an empty response": ([[0, 1], [2], [3, 4, 5]], [3, 3, 5, 1, 1, 1], [4, 9, 8, 2, 1, 6]),
    "single rows": ([[0], [1]], [4, 2], [9, 3]),
}


def in_one_call(q, k, v, plan):
    return shared.attend_in_one_call(q, k, v, WIDTH**-0.5, plan, varlen_reference.attend)


def by_segment(q, k, v, plan):
    return shared.attend_by_segment(q, k, v, WIDTH**-0.5, plan)


def row_by_row(plan: PrefixPlan, q, k, v) -> torch.Tensor:
    """Every row alone, then packed; heads repeated."""
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (k, v))
    at = plan.pack([torch.arange(length) + 1000 * row for row, length in enumerate(plan.lengths)])
    place = {int(name): n for n, name in enumerate(at)}
    rows = [torch.empty(0)] * len(plan.lengths)
    for group in plan.groups:
        for row in group:
            own = [place[1000 * (group[0] if t < plan.prefix[row] else row) + t] for t in range(plan.lengths[row])]
            scores = (q[0][:, own] @ k[0][:, own].transpose(1, 2)) * WIDTH**-0.5
            hidden = torch.ones(len(own), len(own), dtype=torch.bool).triu(1)
            out = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[0][:, own]
            rows[row] = out.permute(0, 2, 1)  # (heads, width, tokens): packed by their last dimension
    return plan.pack(rows).permute(2, 0, 1).unsqueeze(0)


@pytest.mark.parametrize("attend", [in_one_call, by_segment])
@pytest.mark.parametrize("name", GROUPS)
def test_shared_attention_equals_attention_of_each_row_alone(name, attend):
    plan = PrefixPlan(*GROUPS[name])
    random = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, heads, plan.tokens, WIDTH, dtype=torch.float64, generator=random, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    expected = row_by_row(plan, *inputs)
    output = attend(*inputs, shared.AttentionPlan(plan, "cpu"))
    assert output.shape == (1, plan.tokens, HEADS, WIDTH)
    assert (output - expected).abs().max() < 1e-14
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=random)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), inputs) for x in (output, expected))
    assert all((a - b).abs().max() < 1e-13 for a, b in zip(ours, theirs, strict=True))


def test_off_by_one_mask_is_detected():
    plan = PrefixPlan(*GROUPS["a group"])
    inputs = [torch.randn(1, heads, plan.tokens, WIDTH, dtype=torch.float64) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    expected = row_by_row(plan, *inputs)
    plan.segments[1] = plan.segments[1]._replace(prefix_size=5)
    assert (by_segment(*inputs, shared.AttentionPlan(plan, "cpu")) - expected).abs().max() > 1e-2


def test_gradients_of_shared_tokens_are_summed_in_float32():
    """256 + eight ones is 264 in float32; one after another in bfloat16 they would all be lost."""
    values = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    gathered = shared._Gather.apply(values, torch.zeros(9, dtype=torch.int64))
    gathered.backward(torch.tensor([[256.0]] + [[1.0]] * 8, dtype=torch.bfloat16))
    assert values.grad.item() == 264


def test_the_kernel_is_chosen_at_run_time(monkeypatch):
    """flash-attn's where it is installed, else torch's own in each of its signatures, else an error."""
    calls = []

    class Flash:
        @staticmethod
        def flash_attn_varlen_func(*args, **kwargs):
            calls.append(kwargs)

    def newer(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
    ):
        calls.append({"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa, "heads": key.shape[1]})

    def torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        calls.append({"scale": scale, "window_size": window_size, "heads": key.shape[1]})

    class Torch:
        varlen_attn = staticmethod(newer)

    available: dict = {}

    def find(name):
        if name not in available:
            raise ImportError(name)
        return available[name]

    monkeypatch.setattr(shared.importlib, "import_module", find)
    q, k = torch.zeros(3, HEADS, WIDTH), torch.zeros(3, KEY_HEADS, WIDTH)
    for name, module in (("torch.nn.attention.varlen", Torch), ("flash_attn", Flash)):
        available[name] = module
        shared.varlen_kernel.cache_clear()
        shared.varlen_kernel()(q, k, k, None, None, 3, 3, 0.5)
    del available["flash_attn"]
    Torch.varlen_attn = staticmethod(torch_2_11)
    shared.varlen_kernel.cache_clear()
    shared.varlen_kernel()(q, k, k, None, None, 3, 3, 0.5)
    assert calls == [
        {"scale": 0.5, "window_size": (-1, 0), "enable_gqa": True, "heads": KEY_HEADS},
        {"softmax_scale": 0.5, "causal": True},
        {"scale": 0.5, "window_size": (-1, 0), "heads": KEY_HEADS},
    ]
    Torch.varlen_attn = staticmethod(lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False: None)
    shared.varlen_kernel.cache_clear()
    with pytest.raises(RuntimeError, match=r"2\.11 or newer"):
        shared.varlen_kernel()
    available.clear()
    shared.varlen_kernel.cache_clear()
    with pytest.raises(RuntimeError, match="install flash-attn"):
        shared.varlen_kernel()
    shared.varlen_kernel.cache_clear()


def test_shared_attention_without_plan_is_refused():
    q = torch.zeros(1, HEADS, 3, WIDTH)
    with pytest.raises(RuntimeError, match="was called without a plan"):
        shared.attention(None, q, q, q, None)
