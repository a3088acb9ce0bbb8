# SPDX-License-Identifier: Apache-2.0
"""What the planner makes of a config is what verl makes of it; a value that nothing can count with is named."""

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.utils.config import omega_conf_to_dataclass

from verl_p2r.plugin.plan.from_config import Options, plan_of
from verl_p2r.plugin.plan.launches import Launch, launch_of, read
from verl_p2r.plugin.plan.verl_config import COUNTS, check_config

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


@pytest.fixture(scope="module")
def configs() -> dict[str, DictConfig]:
    made = {
        "rl": launch_of("p2r_ppo", [f"actor_rollout_ref.model.path={MODEL}", "p2r/judge=openai"]).config,
        "sft": launch_of("p2r_sft", [f"model.path={MODEL}"]).config,
    }
    with open_dict(made["rl"]):
        made["rl"].algorithm.p2r.judge.kwargs.concurrency = 8
    return made


@pytest.fixture
def launch(configs):
    """`launch("rl" or "sft", {dotted key: value})`."""

    def make(kind: str, values: dict) -> Launch:
        config = configs[kind].copy()
        for key, value in values.items():
            OmegaConf.update(config, key, value, force_add=True)
        module = {"rl": "verl.trainer.main_ppo", "sft": "verl.trainer.sft_trainer"}[kind]
        return Launch(module, kind, [], config)

    return make


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
@pytest.mark.parametrize("inner", ["fsdp", "fsdp2"])
@pytest.mark.parametrize("sequence", [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_planned_engine_equals_verl_engine(launch, strategy, inner, sequence):
    values = {f"{ACTOR}.strategy": strategy, f"{ACTOR}.fsdp_config.strategy": inner}
    values[f"{ACTOR}.ulysses_sequence_parallel_size"] = sequence[0]
    values[f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size"] = sequence[1]
    run = launch("rl", values)
    verls = omega_conf_to_dataclass(run.config.actor_rollout_ref.actor).engine
    ours = plan_of(run, Options(rows=0)).job.engine
    assert ours.fsdp2 is (strategy == "fsdp2") is (verls.strategy == "fsdp2")
    assert (
        ours.ulysses_size == verls.ulysses_sequence_parallel_size == (sequence[0] if sequence[0] > 1 else sequence[1])
    )


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_planned_sft_engine_uses_sft_strategy(launch, strategy):
    assert plan_of(launch("sft", {"engine.strategy": strategy}), Options(rows=0)).job.engine.fsdp2 is (
        strategy == "fsdp2"
    )


@pytest.mark.parametrize("strategy", ["megatron", "veomni", "fsdp_turbo", "ddp", "", None, 2])
@pytest.mark.parametrize(("kind", "key"), [("rl", f"{ACTOR}.strategy"), ("sft", "engine.strategy")])
def test_plan_refuses_unsupported_engine_by_name(launch, kind, key, strategy):
    with pytest.raises(ValueError, match=rf"{key} is {strategy!r}: only fsdp and fsdp2 can be planned"):
        check_config(launch(kind, {key: strategy}))


NO_COUNTS = [0, -1, None, 1.5, True, "8"]
CHOSEN = [
    ("rl", f"{ACTOR}.ppo_max_token_len_per_gpu", {}),
    ("rl", f"{ROLLOUT}.log_prob_max_token_len_per_gpu", {}),
    ("rl", f"{ACTOR}.ppo_micro_batch_size_per_gpu", {f"{ACTOR}.use_dynamic_bsz": False}),
    ("rl", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu", {f"{ACTOR}.use_dynamic_bsz": False}),
    ("rl", f"{ROLLOUT}.n_gpus_per_node", {f"{ROLLOUT}.nnodes": 1}),
    ("rl", "reward.reward_model.nnodes", {"reward.reward_model.enable": True}),
    ("rl", "reward.reward_model.n_gpus_per_node", {"reward.reward_model.enable": True}),
    ("rl", "reward.reward_model.rollout.tensor_model_parallel_size", {"reward.reward_model.enable": True}),
    ("rl", "algorithm.p2r.judge.kwargs.concurrency", {}),
    ("rl", "trainer.total_epochs", {"trainer.total_training_steps": None}),
    ("sft", "data.max_token_len_per_gpu", {"data.use_dynamic_bsz": True}),
    ("sft", "data.micro_batch_size_per_gpu", {"data.use_dynamic_bsz": False}),
    ("sft", "trainer.total_epochs", {"trainer.total_training_steps": None}),
]
ALWAYS = [(kind, key, {}) for kind in ("rl", "sft") for key in COUNTS[kind == "rl"]]


@pytest.mark.parametrize(("kind", "key", "chosen"), [*ALWAYS, *CHOSEN], ids=lambda value: str(value))
def test_plan_names_config_key_of_invalid_count(launch, kind, key, chosen):
    run = launch(kind, chosen)
    for value in NO_COUNTS:
        OmegaConf.update(run.config, key, value)
        shown = "null" if value is None else repr(value)
        with pytest.raises(ValueError, match=rf"{key} is {shown}: give a whole number of at least 1"):
            check_config(run)


OTHERS = [
    ("rl", f"{ROLLOUT}.max_model_len", [0, -1, "8"], "null or a whole number"),
    ("rl", "trainer.total_training_steps", [0, -1], "null or a whole number"),
    ("sft", "trainer.total_training_steps", [0, -1], "null or a whole number"),
    ("rl", f"{ROLLOUT}.gpu_memory_utilization", [0, None, 1.5, "0.5"], "a share above 0, at most 1"),
    ("rl", f"{ROLLOUT}.nnodes", [None, -1, 0.5], "0 to sample where the training runs"),
    ("rl", f"{ACTOR}.fsdp_config.fsdp_size", [0, None], "or -1 for all"),
    ("sft", "engine.fsdp_size", [0, None], "or -1 for all"),
    ("rl", "actor_rollout_ref.model.path", [None, 3], "a folder or a published name"),
    ("sft", "model.path", [None], "a folder or a published name"),
    ("rl", "data.train_files", [None, "", []], "a file or a list of files"),
    ("sft", "data.train_files", [None, "", []], "a file or a list of files"),
]


@pytest.mark.parametrize(("kind", "key", "values", "remedy"), OTHERS)
def test_plan_names_config_key_of_other_invalid_values(launch, kind, key, values, remedy):
    run = launch(kind, {})
    for value in values:
        OmegaConf.update(run.config, key, value)
        with pytest.raises(ValueError, match=rf"{key} is .*: give .*{remedy}"):
            check_config(run)


def test_plan_lists_all_config_errors_at_once(launch):
    with pytest.raises(ValueError, match=r"data\.train_batch_size is 0: .*; .*rollout\.n is null: "):
        check_config(launch("rl", {"data.train_batch_size": 0, f"{ROLLOUT}.n": None}))


def test_plan_shows_verl_own_config_error(launch):
    with pytest.raises(ValueError, match=r"actor_rollout_ref\.rollout: verl refuses it: .*Rollout mode 'sync' has"):
        plan_of(launch("rl", {f"{ROLLOUT}.mode": "sync"}), Options(rows=0))


@pytest.mark.parametrize("sizes", [("gpu", "1"), ("0", "1"), ("8", "0"), ("8", "1:x")])
def test_torchrun_without_numeric_gpu_count_is_refused(sizes):
    launch = ["torchrun", f"--nproc_per_node={sizes[0]}", f"--nnodes={sizes[1]}", "-m", "verl.trainer.sft_trainer"]
    with pytest.raises(ValueError, match="give numbers of at least 1"):
        read([*launch, "--config-path", "pkg://verl_p2r.config", "--config-name", "p2r_sft"])
