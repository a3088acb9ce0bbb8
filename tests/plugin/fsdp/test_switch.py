# SPDX-License-Identifier: Apache-2.0
"""The override for shared-prefix training: what it reaches, what it refuses, and what the trainer does with it."""

from types import SimpleNamespace

import pytest
import torch
from cpu_config import make_config
from transfer_queue import KVBatchMeta
from transformers import Qwen2_5_VLConfig, Qwen3_5Config, Qwen3Config
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass

from verl_p2r.plugin.fsdp import switch
from verl_p2r.plugin.fsdp.vision_tower import FreezableFSDPEngineConfig
from verl_p2r.plugin.rl.trainer import P2RTrainerSync

ON = "trainer.p2r.shared_prefix=True"
MICRO = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"
REF_MICRO = "actor_rollout_ref.ref.ppo_micro_batch_size_per_gpu=1"


def test_shared_prefix_override_reaches_actor_and_reference_engines():
    config = make_config(ON, MICRO)
    switch.share_prefix(config)
    for role in ("actor", "ref"):
        engine = omega_conf_to_dataclass(config.actor_rollout_ref[role].fsdp_config)
        assert type(engine) is FreezableFSDPEngineConfig
        assert engine.shared_prefix
        assert not engine.freeze_vision_tower
    assert omega_conf_to_dataclass(config.actor_rollout_ref.ref.fsdp_config).forward_only


def test_config_is_unchanged_without_shared_prefix():
    config = make_config(MICRO)
    untouched = config.copy()
    switch.share_prefix(config)
    assert config == untouched


@pytest.mark.parametrize(
    ("overrides", "reason", "remedy"),
    [
        (["actor.shuffle=True"], "spread the rollouts", "actor.shuffle=False"),
        (["actor.strategy=fsdp_turbo"], "actor.strategy is fsdp_turbo", "fsdp and fsdp2"),
        (["actor.strategy=megatron"], "actor.strategy is megatron", "fsdp and fsdp2"),
        (["ref.strategy=fsdp_turbo"], "ref.strategy is fsdp_turbo", "fsdp and fsdp2"),
        (["actor.ulysses_sequence_parallel_size=2"], "not support", "ulysses_sequence_parallel_size=1"),
        (
            ["actor.fsdp_config.ulysses_sequence_parallel_size=2"],
            "does not support",
            "ulysses_sequence_parallel_size=1",
        ),
        (["ref.ulysses_sequence_parallel_size=2"], "not support", "ulysses_sequence_parallel_size=1"),
        (["model.enable_activation_offload=True"], "has never run", "enable_activation_offload=False"),
        (["actor.pad_to_length=True"], "not pack rows to a fixed length", "pad_to_length=False"),
    ],
)
def test_unsupported_shared_prefix_config_is_refused_at_start(overrides, reason, remedy, monkeypatch):
    config = make_config(ON, *(f"actor_rollout_ref.{override}" for override in overrides))
    monkeypatch.setattr("verl.trainer.ppo.v1.PPOTrainerSync.__init__", lambda *_: pytest.fail("verl began"))
    with pytest.raises(ValueError, match=reason) as caught:
        P2RTrainerSync(config)
    assert remedy in str(caught.value)
    assert switch.OFF in str(caught.value)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Qwen3Config(), "this is qwen3"),
        (Qwen3_5Config(), "qwen3_5: its linear-attention layers carry a state"),
        (Qwen2_5_VLConfig(text_config={"attention_dropout": 0.1}), "attention_dropout=0.1"),
        (
            Qwen2_5_VLConfig(text_config={"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8}),
            "sliding-window layers",
        ),
    ],
)
def test_models_unsupported_by_shared_prefix_are_refused(config, reason):
    switch.check_model(Qwen2_5_VLConfig())
    with pytest.raises(ValueError, match=reason):
        switch.check_model(config)


def test_lora_dropout_is_refused_with_shared_prefix():
    adapter = torch.nn.Sequential(torch.nn.Dropout(0.0), torch.nn.Dropout(0.05))
    with pytest.raises(ValueError, match=r"dropout 0.05 in 1: .*lora_dropout"):
        switch.check_model(Qwen2_5_VLConfig(), adapter)


def test_top_k_distillation_is_refused_with_shared_prefix():
    data = tu.get_tensordict(tensor_dict={"x": torch.zeros(1)}, non_tensor_dict={"distillation_use_topk": True})
    with pytest.raises(ValueError, match="top-k distillation"):
        switch.check_batch(data)


@pytest.mark.parametrize("mode", ["p2r_sync", "p2r_colocate_async", "p2r_separate_async"])
@pytest.mark.parametrize("on", [True, False])
def test_every_trainer_keeps_groups_on_one_rank(on, mode, monkeypatch):
    keys = [f"{uid}_{session}_0" for session in range(4) for uid in ("a_1", "b", "c", "d")]
    tags = [{"prompt_len": 10 + len(key), "response_len": 5, "seq_len": 15 + len(key)} for key in keys]
    batch = KVBatchMeta(partition_id="train", keys=list(keys), tags=tags)
    monkeypatch.setattr(PPOTrainer, "_balance_batch", lambda self, batch, metrics: batch)
    trainer = object.__new__(get_trainer_cls(mode))
    trainer.run = {"shared_prefix": on}
    trainer.actor_rollout_wg = SimpleNamespace(_dispatch_info={"actor": [0, 1]})
    metrics: dict = {}
    made = trainer._balance_batch(batch, metrics)
    if not on:
        assert made.keys == keys
        assert not metrics
        return
    halves = [made.keys[:8], made.keys[8:]]
    assert [len({key.rsplit("_", 2)[0] for key in half}) for half in halves] == [2, 2]
    assert sorted(made.keys) == sorted(keys)
    assert [tag["prompt_len"] for tag in made.tags] == [10 + len(key) for key in made.keys]
    assert metrics["global_seqlen/balanced_max"] >= metrics["global_seqlen/balanced_min"] > 0
