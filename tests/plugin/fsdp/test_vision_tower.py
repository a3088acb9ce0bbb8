# SPDX-License-Identifier: Apache-2.0
"""Freezing the vision tower, through verl's FSDP engine: what training changes, what it does not, what is refused."""

import subprocess
import sys
from copy import deepcopy
from functools import partial

import pandas as pd
import pytest
import qwen_models
import torch
import torch.distributed as dist
from clip_prompts import SAMPLES
from cpu_config import make_config
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.dataset_utils import DatasetPadMode, SFTTensorCollator
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry
from verl.workers.utils.losses import sft_loss

from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset
from verl_p2r.plugin.fsdp import vision_tower
from verl_p2r.plugin.fsdp.engine import FreezableFSDPEngine
from verl_p2r.plugin.fsdp.vision_tower import FreezableFSDPEngineConfig
from verl_p2r.plugin.rl.trainer import P2RTrainerSync

RESPONSE = "<observation>a red square moves left</observation><think>so</think><answer>left</answer>"


@pytest.fixture(scope="module", autouse=True)
def world():
    """A process group of one."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def model_config(tiny_model):
    """`model_config(**more)`: verl's model config of the tiny model."""
    plain = {"use_remove_padding": False, "enable_gradient_checkpointing": False}
    return lambda **more: HFModelConfig(
        path=str(tiny_model), override_config={"attn_implementation": "sdpa"}, **plain, **more
    )


def sft_engine_config(*overrides: str):
    """The engine's config of SFT on the CPU, as verl's SFT trainer converts it."""
    with initialize_config_module("verl_p2r.config", version_base=None):
        config = compose("p2r_sft_cpu", list(overrides))
    return omega_conf_to_dataclass(config.engine)


def build(engine_config, model_config):
    """verl's engine for a config, as its worker makes it."""
    engine = EngineRegistry.new(
        "language_model",
        engine_config.strategy,
        model_config=model_config,
        engine_config=engine_config,
        optimizer_config=FSDPOptimizerConfig(lr=1e-2, lr_warmup_steps=0, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


@pytest.fixture(scope="module")
def batch(clips, processor, tmp_path_factory):
    """`batch()`: two rows with a video each, as verl's SFT trainer hands them to its engine."""
    size = {"resized_height": 112, "resized_width": 112}
    rows = [
        {
            "messages": [{"role": "user", "content": "<video>What moves?"}, {"role": "assistant", "content": RESPONSE}],
            "videos": [{"type": "video", "video": str(clips[sample[0]]), **sample[1], **size}],
        }
        for sample in SAMPLES[4:6]
    ]
    path = tmp_path_factory.mktemp("rows") / "sft.parquet"
    pd.DataFrame(rows).to_parquet(path)
    config = OmegaConf.create({"pad_mode": "no_padding", "truncation": "error", "max_length": 500})
    dataset = P2RSFTDataset([str(path)], processor.tokenizer, config, processor=processor, max_samples=-1)
    collated = SFTTensorCollator(DatasetPadMode.NO_PADDING)([dataset[0], dataset[1]])
    engineering = {
        "use_remove_padding": False,
        "use_dynamic_bsz": False,
        "micro_batch_size_per_gpu": 1,
        "use_fused_kernels": False,
        "temperature": 1.0,
        "pad_mode": DatasetPadMode.NO_PADDING,
    }
    return lambda: tu.get_tensordict(tensor_dict=deepcopy(collated), non_tensor_dict=engineering)


def weights(engine) -> dict[str, torch.Tensor]:
    """What is sent to the rollout."""
    return {name: tensor.detach().clone() for name, tensor in engine.get_per_tensor_param()[0]}


def train(engine, batch, steps: int) -> set[str]:
    """Train, and return the names of the parameters that had a gradient when the optimizer stepped."""
    step, graded = engine.optimizer_step, set()

    def look_and_step():
        graded.update(name for name, p in engine.module.named_parameters() if p.grad is not None)
        return step()

    engine.optimizer_step = look_and_step
    for _ in range(steps):
        with engine.train_mode():
            engine.train_batch(batch(), partial(sft_loss, config=None))
            engine.lr_scheduler_step()
    return graded


MICRO = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"


def split(names) -> tuple[set[str], set[str]]:
    """Names inside and outside the vision tower."""
    tower = {name for name in names if ".visual." in f".{name}"}
    assert tower, "the model has no vision tower"
    return tower, set(names) - tower


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_freeze_flag_decides_whether_tower_changes(frozen, model_config, batch):
    engine = build(sft_engine_config(f"engine.freeze_vision_tower={frozen}"), model_config())
    before = weights(engine)
    graded = train(engine, batch, 2)
    after = weights(engine)
    assert set(after) == set(before)  # the rollout is sent the tower, too
    tower, language = split(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed >= language - {name for name in language if "k_proj.bias" in name}  # its gradient is zero in theory
    assert bool(tower & changed) is not frozen
    names = dict(engine.module.named_parameters())
    tower, language = split(names)
    assert {name for name, p in names.items() if not p.requires_grad} == (tower if frozen else set())
    held = {id(p) for group in engine.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in names.items() if not frozen or name in language}
    assert {id(p) for p in engine.optimizer.state} <= held
    assert graded == (language if frozen else set(names))


@pytest.mark.slow
def test_a_frozen_run_resumes_from_its_checkpoint(model_config, batch, tmp_path):
    config = ["engine.freeze_vision_tower=True"]
    one = build(sft_engine_config(*config), model_config())
    train(one, batch, 1)
    one.save_checkpoint(str(tmp_path / "step"), global_step=1)
    train(one, batch, 1)
    other = build(sft_engine_config(*config), model_config())
    other.load_checkpoint(str(tmp_path / "step"))
    train(other, batch, 1)
    left, right = weights(one), weights(other)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_freezing_tower_also_freezes_its_lora_adapters(model_config, batch):
    engine = build(sft_engine_config("engine.freeze_vision_tower=True"), model_config(lora_rank=4))
    before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    train(engine, batch, 2)
    after = dict(engine.module.named_parameters())
    tower, language = split(after)
    assert any("lora_" in name for name in tower)
    changed = {name for name in after if not torch.equal(before[name], after[name].detach())}
    assert changed
    assert changed <= {name for name in language if "lora_" in name}


def test_actor_freeze_flag_does_not_reach_reference():
    config = make_config("actor_rollout_ref.actor.freeze_vision_tower=True", MICRO)
    vision_tower.freeze_actor(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert type(actor.engine) is FreezableFSDPEngineConfig
    assert actor.engine.freeze_vision_tower
    assert actor.engine.strategy == "fsdp2"
    assert "freeze_vision_tower" not in config.actor_rollout_ref.ref.fsdp_config


def test_actor_config_is_unchanged_without_freeze_flag():
    config = make_config(MICRO)
    untouched = config.copy()
    vision_tower.freeze_actor(config)
    assert config == untouched
    assert type(omega_conf_to_dataclass(config.actor_rollout_ref.actor).engine) is FSDPEngineConfig


def test_trainer_passes_freeze_flag_to_engine_config(monkeypatch):
    seen = []

    def stop(self, config):
        seen.append(config.actor_rollout_ref.actor.fsdp_config)
        raise KeyboardInterrupt

    monkeypatch.setattr("verl.trainer.ppo.v1.PPOTrainerSync.__init__", stop)
    with pytest.raises(KeyboardInterrupt):
        P2RTrainerSync(make_config("actor_rollout_ref.actor.freeze_vision_tower=True"))
    assert seen[0].freeze_vision_tower is True


@pytest.mark.slow
def test_a_forward_only_engine_has_no_optimizer_and_freezes_nothing(model_config):
    config = sft_engine_config("engine.freeze_vision_tower=True", "engine.forward_only=True")
    engine = build(config, model_config())
    assert engine.optimizer is None
    assert all(p.requires_grad for p in engine.module.parameters())


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["engine.strategy=fsdp"], "use_orig_params=True"),
        (["engine.strategy=fsdp_turbo"], "strategy=fsdp_turbo would ignore it"),
    ],
)
def test_sft_refuses_config_that_cannot_freeze_tower(overrides, what, model_config):
    overrides = ["engine.freeze_vision_tower=True", *overrides]
    with pytest.raises(Exception, match=what):  # hydra's own error when the config itself refuses
        build(sft_engine_config(*overrides), model_config())


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["actor_rollout_ref.actor.strategy=fsdp"], "use_orig_params=True"),
        (["actor_rollout_ref.actor.strategy=megatron"], "strategy=megatron would ignore it"),
    ],
)
def test_rl_refuses_config_that_cannot_freeze_tower(overrides, what):
    config = make_config("actor_rollout_ref.actor.freeze_vision_tower=True", *overrides)
    with pytest.raises(ValueError, match=what):
        vision_tower.freeze_actor(config)


def test_fsdp1_freezes_tower_with_use_orig_params():
    keep = "actor_rollout_ref.actor.fsdp_config.use_orig_params=True"
    fsdp1 = ["actor_rollout_ref.actor.strategy=fsdp", keep, MICRO]
    config = make_config("actor_rollout_ref.actor.freeze_vision_tower=True", *fsdp1)
    vision_tower.freeze_actor(config)
    assert omega_conf_to_dataclass(config.actor_rollout_ref.actor).engine.use_orig_params


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "qwen3_5"])
def test_freeze_covers_tower_and_mergers_of_every_family(family, tmp_path):
    from transformers import AutoConfig, AutoModelForImageTextToText

    qwen_models.save(tmp_path / family, family)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path / family))
    assert vision_tower.freeze(model) == sum(p.numel() for p in model.model.visual.parameters())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("model.visual.")}
    mergers = ["merger", "deepstack_merger_list"] if family == "qwen3_vl" else ["merger"]
    for merger in mergers:
        assert any(name.startswith(f"model.visual.{merger}.") for name in frozen)


def test_a_model_without_a_tower_is_refused():
    with pytest.raises(ValueError, match="Linear has no module named 'visual'"):
        vision_tower.freeze(torch.nn.Linear(2, 2))


@pytest.mark.slow
def test_reading_engine_config_before_engine_import_is_not_circular():
    """As verl's RL worker does; importing the engine's module must not be circular."""
    script = """
from verl.utils.config import omega_conf_to_dataclass
omega_conf_to_dataclass({"_target_": "verl_p2r.plugin.fsdp.vision_tower.FreezableFSDPEngineConfig"})
from verl.workers.engine import EngineRegistry
print(EngineRegistry.get_engine_cls("language_model", "fsdp2").__mro__[1].__module__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["verl_p2r.plugin.fsdp.engine"], done.stderr


@pytest.mark.parametrize(("device", "vendor"), [("cuda", "nvidia"), ("cuda", "amd"), ("npu", "huawei"), ("cpu", None)])
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_verl_finds_the_engine_on_every_device(device, vendor, strategy, monkeypatch):
    monkeypatch.setenv("VERL_ENGINE_DEVICE", device)
    if vendor:
        monkeypatch.setenv("VERL_ENGINE_VENDOR", vendor)
    assert issubclass(EngineRegistry.get_engine_cls("language_model", strategy), FreezableFSDPEngine)
