# SPDX-License-Identifier: Apache-2.0
"""The branch for a GPU, run on a CPU: a plain-torch kernel with flash-attn's contract takes the place of the real one.

Everything else is what runs on a GPU: gathered keys and values, segment boundaries, the summed gradients of shared
tokens. `test_attention.py` compares the same indices with every row alone in float64, forward and backward.
"""

import prefix_engines as engines
import pytest
import torch
import varlen_reference

from verl_p2r.plugin.fsdp import attention

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("world")]

HALF = ("engine.mixed_precision.param_dtype=bf16", "engine.dtype=bfloat16")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Have the attention take the branch of CUDA in half precision."""
    calls = []

    def attend(query, key, value, scaling, plan):
        calls.append(plan.shares)
        return attention.attend_in_one_call(query, key, value, scaling, plan, varlen_reference.attend)

    monkeypatch.setattr(attention, "attend_by_segment", attend)
    yield
    assert any(calls)


def numbers(engine, rollouts, config):
    return engines.infer(engine, rollouts.batch()), *engines.train(engine, rollouts.batch(), config)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_gpu_code_path_equals_stock_engine(family, models):
    folder = models(family)
    stock, ours = (
        engines.build(folder, engines.StockEngine),
        engines.build(folder, engines.CPUFSDPEngine, engines.SHARED),
    )
    rollouts, config = engines.mixed_rollouts(stock.module.config), engines.loss_config(folder)
    expected, found = (numbers(engine, rollouts, config) for engine in (stock, ours))
    for name in ("log_probs", "entropy"):
        assert (found[0][name] - expected[0][name]).abs().max() <= 5e-6
    assert found[1] == pytest.approx(expected[1], abs=1e-6)
    assert engines.worst(found[2], expected[2]) <= 1e-5


def squared_errors(found, expected) -> torch.Tensor:
    """Mean squared error of the log-probabilities, and squared relative error of all gradients together."""
    of_log_probs = (found[0]["log_probs"].float() - expected[0]["log_probs"]).square().mean()
    off = sum((found[2][name].float() - grad).square().sum() for name, grad in expected[2].items())
    return torch.stack([of_log_probs, off / sum(grad.square().sum() for grad in expected[2].values())])


@pytest.mark.usefixtures("as_on_a_gpu")
def test_bfloat16_error_is_at_most_that_of_stock_engine(models):
    """Both against verl's engine in float32, over four batches; the bound is the issue's."""
    folder = models("qwen2_5_vl")
    exact, stock = engines.build(folder, engines.StockEngine), engines.build(folder, engines.StockEngine, *HALF)
    ours = engines.build(folder, engines.CPUFSDPEngine, engines.SHARED, *HALF)
    config = engines.loss_config(folder)
    total = torch.zeros(2, 2)
    for seed in range(4):
        rollouts = engines.Rollouts(exact.module.config, seed)
        for width in (8, 12):
            rollouts.group([30, 25, 33, 18], ("video", (2, 8, width)), text=20)
        rollouts.on_policy(engines.infer(exact, rollouts.batch())["log_probs"])
        expected, *others = (numbers(engine, rollouts, config) for engine in (exact, stock, ours))
        total += torch.stack([squared_errors(found, expected) for found in others])
    theirs, own = (total / 4).sqrt()
    assert theirs[0] > 1e-4  # half precision is really used
    assert (own <= 1.2 * theirs).all(), (own, theirs)
