# SPDX-License-Identifier: Apache-2.0
"""A frozen tower's features are made once a step, and no number depends on it."""

import prefix_engines as engines
import pytest
import torch
from cpu_config import make_config
from test_vision_inputs import pixels, shared

from verl_p2r.plugin.fsdp import step_features, vision_tower
from verl_p2r.plugin.fsdp.step_features import STORE, FeatureStore, media_key

VIDEO, OTHER, IMAGE = ("video", (4, 8, 8)), ("video", (2, 4, 8)), ("image", (1, 4, 8))
PATCHES = 256 + 64 + 32
FROZEN, KEPT, SHARED = "engine.freeze_vision_tower=True", "engine.vision_features_gib=1", engines.SHARED
FORWARD_ONLY = "engine.forward_only=True"


def test_full_feature_store_keeps_existing_entries():
    store = FeatureStore()
    store.max_bytes = 100
    first, second = torch.ones(10, 2), torch.ones(5)  # 80 and 20 bytes
    for key, features in (("a", [first]), ("b", [torch.ones(10), second]), ("c", [second])):
        store.put(key, features)
    first.zero_()  # the store has a copy
    assert store.get("a")[0].sum() == 20
    assert store.get("b") is None
    assert torch.equal(store.get("c")[0], second)
    store.clear()
    assert store.get("a") is None
    store.put("b", [torch.ones(25)])
    assert store.get("b") is not None


def test_media_key_depends_on_values_or_sources():
    close = pixels(0)
    close["pixel_values"][3, 5] += 1e-6
    as_video = {"pixel_values_videos": pixels(0)["pixel_values"], "video_grid_thw": pixels(0)["image_grid_thw"]}
    different = [pixels(0), pixels(1), close, pixels(0, (1, 2, 8)), as_video, shared("a.mp4"), shared("b.mp4")]
    assert len({media_key(row) for row in different}) == len(different)
    assert media_key(pixels(0)) == media_key(pixels(0))
    assert media_key(shared("a.mp4", "another question")) == media_key(shared("a.mp4"))  # no worker to load from


@pytest.mark.parametrize(("gib", "expected"), [((), 2.0), (("trainer.p2r.vision_features_gib=0",), 0)])
def test_frozen_run_keeps_features_in_actor_and_reference(gib, expected):
    config = make_config("actor_rollout_ref.actor.freeze_vision_tower=True", *gib)
    vision_tower.freeze_actor(config)
    for role in ("actor", "ref"):
        engine = config.actor_rollout_ref[role].fsdp_config
        assert (engine._target_, engine.vision_features_gib) == (vision_tower.ENGINE_CONFIG, expected)
    assert not config.actor_rollout_ref.ref.fsdp_config.get("freeze_vision_tower", False)


def test_unfrozen_tower_keeps_no_features():
    config = make_config("trainer.p2r.vision_features_gib=5")
    untouched = config.copy()
    vision_tower.freeze_actor(config)
    assert config == untouched


@pytest.fixture(autouse=True)
def _empty_store():
    STORE.clear()


def rollouts(engine) -> engines.Rollouts:
    """Two mini-batches of 4 rows: rollouts of two clips, an image, and text."""
    made = engines.Rollouts(engine.module.config).group([14, 5, 9], VIDEO).group([6], IMAGE)
    return made.group([9, 3, 4], OTHER).group([8])


def step(actor, reference, made, config) -> dict:
    """The passes of a step as verl's workers make them, with two mini-batches and two epochs and equal weights."""
    old, ref = engines.infer(actor, made.batch()), engines.infer(reference, made.batch(calculate_entropy=False))
    grads = []
    for rows in (made.rows[:4], made.rows[4:]) * 2:
        grads.append(engines.train(actor, made.batch(rows, total=8), config))
    actor.lr_scheduler_step()
    return {"old": old, "ref": ref, "updates": grads}


@pytest.mark.slow
@pytest.mark.usefixtures("world", "fsdp1_on_a_cpu")
@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        ("qwen2_5_vl", ()),
        ("qwen2_5_vl", (SHARED, *engines.FSDP1)),
        ("qwen3_vl", (SHARED, "engine.forward_prefetch=True")),
    ],
    ids=["whole-rows", "fsdp1", "deepstack-prefetch"],
)
def test_one_tower_call_per_step_gives_same_numbers(family, prefix, models):
    folder = models(family)
    plain = [engines.build(folder, engines.CPUFSDPEngine, x, *prefix) for x in (FROZEN, FORWARD_ONLY)]
    ours = [engines.build(folder, engines.CPUFSDPEngine, x, KEPT, *prefix) for x in (FROZEN, FORWARD_ONLY)]
    made, config = rollouts(ours[0]), engines.loss_config(folder)
    expected, counts = step(*plain, made, config), [engines.TowerCalls(engine) for engine in ours]
    for n in (1, 2):  # a second step starts without features
        found = step(*ours, made, config)
        assert [(count.calls, count.patches) for count in counts] == [(n, n * PATCHES), (0, 0)]
    for name in ("old", "ref"):
        assert (found[name]["log_probs"] - expected[name]["log_probs"]).abs().max() <= 1e-6
    for (loss, grads), (plain_loss, plain_grads) in zip(found["updates"], expected["updates"], strict=True):
        assert loss == pytest.approx(plain_loss, abs=1e-6)
        assert engines.worst(grads, plain_grads) <= 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("world")
def test_features_not_in_store_are_recomputed(models):
    """Room for the first clip alone: later passes send the other media through the tower, and only those."""
    ours = engines.build(models("qwen2_5_vl"), engines.CPUFSDPEngine, FROZEN, KEPT)
    made, count = rollouts(ours), engines.TowerCalls(ours)
    whole = engines.infer(ours, made.batch())
    STORE.clear()
    first = (
        made.rows[0]["media"]["video_grid_thw"].prod().item() // 4 * ours.module.config.get_text_config().hidden_size
    )
    STORE.max_bytes = 4 * first
    count.calls = count.patches = 0
    again = [engines.infer(ours, made.batch()) for _ in range(2)]
    assert (count.calls, count.patches) == (2, PATCHES + PATCHES - 256)
    assert all(torch.equal(one["log_probs"], whole["log_probs"]) for one in again)


@pytest.mark.slow
@pytest.mark.usefixtures("world")
def test_changed_weights_or_media_do_not_reuse_features(models, tmp_path):
    ours = engines.build(models("qwen2_5_vl"), engines.CPUFSDPEngine, FROZEN, KEPT)
    made, count = rollouts(ours), engines.TowerCalls(ours)
    engines.infer(ours, made.batch())
    made.rows[0]["media"] = {name: value.clone() for name, value in made.rows[0]["media"].items()}
    made.rows[0]["media"]["pixel_values_videos"][5, 7] += 1e-3
    engines.infer(ours, made.batch())
    assert (count.calls, count.patches) == (2, PATCHES + 256)

    ours.save_checkpoint(str(tmp_path / "same"))
    [tower] = vision_tower.towers_of(ours.module)
    with torch.no_grad():
        next(tower.parameters()).add_(1)
    ours.save_checkpoint(str(tmp_path / "other"))
    before = ours._weights
    ours.load_checkpoint(str(tmp_path / "other"), del_local_after_load=False)
    assert ours._weights == before  # the tower stays as it is
    engines.infer(ours, made.batch())
    ours.load_checkpoint(str(tmp_path / "same"), del_local_after_load=False)
    assert ours._weights != before  # an untouched reference has another tower now
    assert STORE.get((before, False, media_key(made.rows[0]["media"]))) is None


@pytest.mark.slow
@pytest.mark.usefixtures("world")
def test_lora_reference_does_not_reuse_adapter_features(models):
    """The adapters' B is zero at first; made other than zero, they change what the tower gives."""
    lora = {"lora_rank": 4, "target_modules": "all-linear"}
    ours = engines.build(models("qwen2_5_vl"), engines.CPUFSDPEngine, FROZEN, KEPT, **lora)
    for name, parameter in ours.module.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    base = engines.build(models("qwen2_5_vl"), engines.CPUFSDPEngine)
    made = rollouts(ours)
    with_adapters = engines.infer(ours, made.batch())["log_probs"]
    with ours.disable_adapter():
        reference = engines.infer(ours, made.batch())["log_probs"]
    assert (reference - engines.infer(base, made.batch())["log_probs"]).abs().max() <= 5e-6
    assert (with_adapters - reference).abs().max() > 1e-2


class Builds:
    """As much of verl's engine as builds a module."""

    def __init__(self, model_config, engine_config):
        pass

    def _build_fsdp_module(self, module):
        return module


def test_tower_dropout_or_fsdp1_prefetch_disables_feature_store():
    class Engine(step_features.StepFeatures, Builds):
        pass

    prefetching = {"strategy": "fsdp", "forward_prefetch": True}
    assert Engine(None, {"vision_features_gib": 1.0, **prefetching})._feature_bytes == 0
    engine = Engine(None, {"vision_features_gib": 1.0})
    model = torch.nn.Module()
    model.visual = torch.nn.Sequential(torch.nn.Dropout(0.1))
    assert engine._build_fsdp_module(model) is model
    assert engine._feature_bytes == 0
