# SPDX-License-Identifier: Apache-2.0
"""The shared prefix against verl's own engine: log-probabilities, entropies, loss and gradients, in float32."""

import prefix_engines as engines
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("world")]

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(scope="module")
def stock_numbers(models):
    """`stock_numbers(family)`: a batch, and what verl's engine makes of it, one row in a micro-batch without media."""
    made = {}

    def get(family: str):
        if family not in made:
            stock = engines.build(models(family), engines.StockEngine)
            rollouts = engines.mixed_rollouts(stock.module.config)
            config = engines.loss_config(models(family))
            made[family] = (
                rollouts,
                config,
                engines.infer(stock, rollouts.batch()),
                *engines.train(stock, rollouts.batch(), config),
            )
        return made[family]

    return get


def check(engine, numbers, **settings) -> None:
    rollouts, config, outputs, loss, grads = numbers
    ours = engines.infer(engine, rollouts.batch(**settings))
    for name in ("log_probs", "entropy"):
        assert (ours[name] - outputs[name]).abs().max() <= 5e-6
    our_loss, our_grads = engines.train(engine, rollouts.batch(**settings), config)
    assert our_loss == pytest.approx(loss, abs=1e-6)
    assert engines.worst(our_grads, grads) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_are_stocks_in_one_and_in_many_micro_batches(family, models, stock_numbers):
    engine = engines.build(models(family), engines.CPUFSDPEngine, engines.SHARED)
    check(engine, stock_numbers(family))
    check(engine, stock_numbers(family), use_dynamic_bsz=True, max_token_len_per_gpu=200)
    check(engine, stock_numbers(family), micro_batch_size_per_gpu=1)
