# SPDX-License-Identifier: Apache-2.0
"""The shared prefix against verl's own engine: log-probabilities, entropies, loss and gradients, in float32."""

import prefix_engines as engines
import pytest
import torch
from transformers import AutoModelForImageTextToText

from verl_p2r.plugin.fsdp import attention, shared_prefix
from verl_p2r.prefix.plan import PrefixPlan

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("world", "fsdp1_on_a_cpu")]

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
FROZEN = "engine.freeze_vision_tower=True"
LORA = {"lora_rank": 4, "target_modules": "all-linear"}


def numbers(engine, rollouts, config, **settings):
    return (
        engines.infer(engine, rollouts.batch(**settings)),
        *engines.train(engine, rollouts.batch(**settings), config),
    )


def check(ours, stock) -> None:
    for name in ("log_probs", "entropy"):
        assert (ours[0][name] - stock[0][name]).abs().max() <= 5e-6
    assert ours[1] == pytest.approx(stock[1], abs=1e-6)
    assert engines.worst(ours[2], stock[2]) <= 1e-5


@pytest.fixture(scope="module")
def stock(models):
    """`stock(family)`: rows, the loss's config, and what verl's engine makes of them in one micro-batch."""
    made = {}

    def get(family: str):
        if family not in made:
            engine = engines.build(models(family), engines.StockEngine)
            rollouts, config = engines.mixed_rollouts(engine.module.config), engines.loss_config(models(family))
            made[family] = (rollouts, config, numbers(engine, rollouts, config))
        return made[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefix_equals_stock_engine_in_any_micro_batching(family, models, stock):
    engine = engines.build(models(family), engines.CPUFSDPEngine, engines.SHARED)
    rollouts, config, expected = stock(family)
    check(numbers(engine, rollouts, config), expected)
    count = engines.TowerCalls(engine)
    many = numbers(engine, rollouts, config, use_dynamic_bsz=True, max_token_len_per_gpu=200)
    check(many, expected)
    assert count.calls == 2 * 3  # micro-batches, once for the log-probabilities and once for the update


@pytest.mark.parametrize(
    ("overrides", "model"),
    [
        (engines.FSDP1, {}),
        ((), {"enable_gradient_checkpointing": True}),
        ((FROZEN,), {}),
        ((*engines.FSDP1, FROZEN), {"enable_gradient_checkpointing": True}),
        ((), LORA),
        ((FROZEN,), {**LORA, "enable_gradient_checkpointing": True}),
        (("engine.entropy_checkpointing=True",), {"use_remove_padding": True}),
    ],
    ids=["fsdp1", "checkpointing", "frozen", "fsdp1-frozen-checkpointing", "lora", "lora-frozen", "remove-padding"],
)
def test_shared_prefix_equals_stock_engine_in_every_training_mode(overrides, model, models):
    """verl's engine as the same settings make it; the tower's freeze is ours on both sides."""
    folder = models("qwen2_5_vl")
    plain = {**model, "use_remove_padding": False}  # verl's own needs flash-attn for it
    theirs = engines.build(folder, engines.CPUFSDPEngine, *overrides, **plain)
    ours = engines.build(folder, engines.CPUFSDPEngine, *overrides, engines.SHARED, **model)
    if "lora_rank" in model:  # equal adapters; PEFT's B is zero at first, and A would get no gradient
        torch.manual_seed(0)
        pairs = zip(theirs.module.named_parameters(), ours.module.parameters(), strict=True)
        for (name, left), right in pairs:
            if "lora_" in name:
                right.data.copy_(left.data.normal_(std=0.1))
    rollouts = engines.Rollouts(theirs.module.config)
    rollouts.group([14, 5, 1], ("video", (4, 8, 8))).group([9, 3], ("image", (1, 4, 8))).shuffled()
    config = engines.loss_config(folder)
    check(numbers(ours, rollouts, config), numbers(theirs, rollouts, config))


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"temperature": torch.tensor([0.5, 1.0, 1.5, 2.0, 0.9])}])
def test_shared_prefix_applies_temperature_per_row(settings, models):
    folder = models("qwen2_5_vl")
    theirs, ours = engines.build(folder), engines.build(folder, engines.CPUFSDPEngine, engines.SHARED)
    rollouts = engines.Rollouts(theirs.module.config).group([14, 5, 1], ("video", (2, 4, 8))).group([9, 3]).shuffled()
    outputs = [engines.infer(engine, rollouts.batch(**settings)) for engine in (theirs, ours)]
    assert (outputs[0]["log_probs"] - outputs[1]["log_probs"]).abs().max() <= 5e-6


def test_fused_kernels_give_the_same_numbers(models):
    folder = models("qwen3_vl")
    fused = {"use_fused_kernels": True, "fused_kernel_options": {"impl_backend": "torch"}}
    theirs = engines.build(folder)
    ours = engines.build(folder, engines.CPUFSDPEngine, engines.SHARED, **fused)
    rollouts = engines.Rollouts(theirs.module.config).group([14, 5, 1], ("video", (2, 4, 8))).group([9, 3]).shuffled()
    try:
        fused_outputs = engines.infer(ours, rollouts.batch(use_fused_kernels=True, temperature=0.7))
    finally:
        engines.unpatch_fused(ours)
    outputs = engines.infer(theirs, rollouts.batch(temperature=0.7))
    for name in ("log_probs", "entropy"):
        assert (outputs[name] - fused_outputs[name]).abs().max() <= 5e-6


def test_rollout_correction_weights_and_loss_modes_apply_per_row(models):
    folder = models("qwen2_5_vl")
    theirs, ours = engines.build(folder), engines.build(folder, engines.CPUFSDPEngine, engines.SHARED)
    rollouts = engines.Rollouts(theirs.module.config).group([14, 5, 1], ("video", (2, 4, 8))).group([9, 3]).shuffled()
    plain = engines.loss_config(folder, "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean")
    losses = [engines.train(engine, rollouts.batch(), plain)[0] for engine in (theirs, ours)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for row in rollouts.rows:
        row["rollout_is_weights"] = torch.ones_like(row["rollout_is_weights"])
    unweighted = engines.train(ours, rollouts.batch(), plain)[0]
    assert unweighted != pytest.approx(losses[1], abs=1e-4)  # the weights are not ones


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_rows_with_later_tool_media_form_groups_of_one(family, models):
    """Their rows share tokens and a clip with the prompt's other rollouts, but not the media as a whole."""
    folder = models(family)
    theirs = engines.build(folder, engines.StockEngine)
    ours = engines.build(folder, engines.CPUFSDPEngine, engines.SHARED)
    rollouts = engines.Rollouts(theirs.module.config).group([9, 14, 5], ("video", (2, 8, 8)))
    rollouts.turns([8, 11], "image", (1, 4, 8)).shuffled()
    config = engines.loss_config(folder)
    check(numbers(ours, rollouts, config), numbers(theirs, rollouts, config))


def test_batch_without_prompts_runs_unchanged(models):
    """SFT's: every position but the last of a row has a log-probability."""
    folder = models("qwen2_5_vl")
    theirs, ours = engines.build(folder), engines.build(folder, engines.CPUFSDPEngine, engines.SHARED)
    rollouts = engines.Rollouts(theirs.module.config).group([14, 5], ("video", (2, 4, 8))).group([9])
    outputs = []
    for engine in (theirs, ours):
        data = rollouts.batch().exclude("prompts", "responses", "response_mask")
        with engine.eval_mode():
            made = engine.infer_batch(data, loss_function=None)["model_output"]["log_probs"]
        outputs.append(torch.cat([row[:-1] for row in made.unbind()]))
    assert (outputs[0] - outputs[1]).abs().max() <= 5e-6


def test_forward_only_reference_returns_only_log_probs(models, stock):
    rollouts, _, expected = stock("qwen2_5_vl")
    ours = engines.build(models("qwen2_5_vl"), engines.CPUFSDPEngine, engines.SHARED, "engine.forward_only=True")
    outputs = engines.infer(ours, rollouts.batch(calculate_entropy=False))
    assert set(outputs) == {"log_probs"}
    assert (outputs["log_probs"] - expected[0]["log_probs"]).abs().max() <= 5e-6


def _blind(plan) -> None:
    """Hide the last token of a prefix from its first suffix."""
    at = next(n for n, segment in enumerate(plan.segments) if segment.prefix_size)
    plan.segments[at] = plan.segments[at]._replace(prefix_size=plan.segments[at].prefix_size - 1)


@pytest.mark.parametrize("fault", ["mask", "position"])
def test_off_by_one_mask_or_position_is_detected(fault, models, stock, monkeypatch):
    rollouts, config, expected = stock("qwen2_5_vl")
    engine = engines.build(models("qwen2_5_vl"), engines.CPUFSDPEngine, engines.SHARED)

    class Wrong(PrefixPlan):
        def __init__(self, *args):
            super().__init__(*args)
            if fault == "mask":
                _blind(self)

        def pack(self, rows):
            packed = super().pack(rows)
            if fault == "position" and packed.dim() == 2:
                packed = packed.clone()
                packed[1:, self.prefix[self.groups[0][0]] :] += 1
            return packed

    monkeypatch.setattr(shared_prefix, "PrefixPlan", Wrong)
    ours = numbers(engine, rollouts, config)
    assert (ours[0]["log_probs"] - expected[0]["log_probs"]).abs().max() > 1e-2
    assert engines.worst(ours[2], expected[2]) > 1e-2


def test_replaced_attention_implementation_is_detected(models):
    """As when an engine without the shared prefix in the same process replaces the class."""
    engine = engines.build(models("qwen2_5_vl"), engines.CPUFSDPEngine, engines.SHARED)
    rollouts = engines.Rollouts(engine.module.config).group([5, 3])
    engine.module.config.get_text_config()._attn_implementation = "sdpa"
    with pytest.raises(RuntimeError, match="did not use the attention 'p2r_shared_prefix'"):
        engines.infer(engine, rollouts.batch())


def test_checkpoint_does_not_contain_our_attention_name(models, tmp_path):
    engine = engines.build(models("qwen2_5_vl"), engines.CPUFSDPEngine, engines.SHARED)
    engine.checkpoint_manager.checkpoint_save_contents = ["model", "optimizer", "extra", "hf_model"]
    engine.save_checkpoint(str(tmp_path / "step"), global_step=1)
    written = [path for path in (tmp_path / "step").rglob("*.json") if attention.NAME in path.read_text()]
    assert not written
    AutoModelForImageTextToText.from_pretrained(tmp_path / "step" / "huggingface")
