# SPDX-License-Identifier: Apache-2.0
"""One call of the vision tower for each micro-batch: what verl's engine does without it, and that no number changes."""

import prefix_engines as engines
import pytest
import torch
from verl.utils import torch_functional

from verl_p2r.plugin.fsdp import log_probs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("world")]

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]
VIDEO, IMAGE = ("video", (2, 4, 8)), ("image", (1, 4, 8))


def of_two_kinds(config) -> engines.Rollouts:
    """Two rollouts of a clip, one row with an image and another clip, and one of text."""
    return engines.Rollouts(config).group([5, 7], VIDEO).group([6], IMAGE, VIDEO).group([9])


@pytest.mark.parametrize("family", FAMILIES)
def test_one_tower_call_for_distinct_media_gives_same_numbers(family, models, monkeypatch):
    monkeypatch.setattr(torch_functional, "logprobs_from_logits_v2", log_probs.verls_log_probs)  # on both sides
    stock, ours = engines.build(models(family), engines.StockEngine), engines.build(models(family))
    rollouts = of_two_kinds(stock.module.config)
    config = engines.loss_config(models(family))
    counts = [engines.TowerCalls(engine) for engine in (stock, ours)]
    results = [engines.train(engine, rollouts.batch(), config) for engine in (stock, ours)]
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-6)
    assert engines.worst(results[1][1], results[0][1]) <= 1e-5
    assert [count.calls for count in counts] == [2, 1]  # verl's: one for images, one for videos
    assert [count.patches for count in counts] == [32 + 3 * 64, 32 + 2 * 64]  # equal clips go in once


@pytest.mark.parametrize("family", FAMILIES)
def test_every_micro_batch_calls_vision_tower_once(family, models):
    ours = engines.build(models(family))
    rollouts = of_two_kinds(ours.module.config)
    count = engines.TowerCalls(ours)
    engines.infer(ours, rollouts.batch(micro_batch_size_per_gpu=1))
    assert count.calls == len(rollouts.rows)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_text_only_micro_batch_runs_where_stock_verl_crashes(family, models):
    stock, ours = engines.build(models(family), engines.StockEngine), engines.build(models(family))
    rollouts = of_two_kinds(stock.module.config)
    text = rollouts.rows[-1:]
    beside_media = engines.infer(stock, rollouts.batch())["log_probs"][-len(text[0]["responses"]) :]
    with pytest.raises(AttributeError, match="mean"):  # when this fails, verl has fixed it and ours can go
        engines.infer(stock, rollouts.batch(text))
    assert (engines.infer(ours, rollouts.batch(text))["log_probs"] - beside_media).abs().max() <= 5e-6


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_text_only_micro_batch_gives_zero_grads_to_all_tower_params(family, models):
    """FSDP's ranks reduce the same gradients only if each has them."""
    ours = engines.build(models(family))
    rollouts = engines.Rollouts(ours.module.config).group([9])
    _, grads = engines.train(ours, rollouts.batch(), engines.loss_config(models(family)))
    assert set(grads) == {name for name, _ in ours.module.named_parameters()}
    assert all(torch.count_nonzero(grad) == 0 for name, grad in grads.items() if ".visual." in name)


def test_placeholder_count_that_differs_from_features_is_refused(models):
    ours = engines.build(models("qwen2_5_vl"))
    rollouts = engines.Rollouts(ours.module.config).group([5], VIDEO)
    rollouts.rows[0]["media"] = {
        "pixel_values_videos": torch.zeros(32, rollouts.width),
        "video_grid_thw": torch.tensor([[1, 4, 8]]),
    }
    with pytest.raises(ValueError, match="16 video placeholders, but its media give 8 features"):
        engines.infer(ours, rollouts.batch())
