# SPDX-License-Identifier: Apache-2.0
"""The scripts in `examples/`, as a user runs them up to verl's door: their commands compose, verl and we accept them,
our classes can be made from them, and their numbers add up.
"""

import gzip
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from example_scripts import (
    CASES,
    EXAMPLES,
    MODELS,
    START,
    TEXT,
    Case,
    Run,
    call,
    composed,
    gpus_of,
    media_tokens,
    read,
    rename_as_verls_worker_does,
)
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.utils import create_rl_dataset, need_critic, need_reference_policy
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.sft_trainer import create_sft_dataset
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.import_utils import load_class_from_fqn

from verl_p2r.data.settings import DataSettings
from verl_p2r.plugin.media.media_cache import cache_settings
from verl_p2r.plugin.rl.trainer import check_config
from verl_p2r.settings import P2RSettings


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs(case)`: the case's run, made once; who changes its config takes a copy."""
    made: dict[str, Run] = {}
    folder = tmp_path_factory.mktemp("run")

    def make(case: Case) -> Run:
        if str(case) not in made:
            done, command = call(case.script, case.env, folder)
            assert done.returncode == 0, done.stderr
            made[str(case)] = read(command)
        return made[str(case)]

    return make


def cases(kind: str | None = None):
    """The cases as parameters: all, or those of `rl` or `sft`."""
    sft = [case for case in CASES if "sft" in case.script or "sft" in case.env.get("ABLATION", "").split("_")]
    chosen = {None: CASES, "sft": sft, "rl": [case for case in CASES if case not in sft]}[kind]
    return pytest.mark.parametrize("case", chosen, ids=str)


def test_every_example_script_has_test_case_and_readme_row():
    scripts = {path.name for path in EXAMPLES.glob("*.sh")}
    several = {"smoke_gpu.sh"}  # several commands, which tests/examples/test_smoke_gpu.py composes
    assert scripts == {case.script for case in CASES} | several
    rows = [line for line in (EXAMPLES / "README.md").read_text().splitlines() if line.startswith("|")]
    for script in scripts:
        listed = [row for row in rows if f"`{script}`" in row or f" {script}`" in row]
        assert listed, f"{script} has no row in examples/README.md"
        assert all(row.rstrip(" |").endswith("not run") for row in listed)


@cases()
def test_script_header_states_hardware_time_and_result(case, runs):
    head = re.match(r"(#.*\n)+", (EXAMPLES / case.script).read_text())[0]
    for word in (
        "SPDX-License-Identifier: Apache-2.0",
        "# Hardware:",
        "# Time:",
        "# Expect:",
        "not run",
        "[overrides]",
    ):
        assert word in head, f"{case.script}: its head lacks {word!r}"
    if case.script == "ablation.sh" or set(case.env) & {"NNODES", "GPUS"}:
        return  # other hardware than the head's
    nodes, gpus = map(int, re.search(r"# Hardware:.*?(\d+) nodes? of (\d+) GPUs?", head).groups())
    assert gpus_of(runs(case)) == nodes * gpus


@cases()
def test_script_overrides_existing_keys_and_uses_its_model(case, runs):
    run = runs(case)
    assert not [override for override in run.overrides if override.startswith(("+", "~"))]
    path = run.config.actor_rollout_ref.model.path if run.trains_rl else run.config.model.path
    if "MODEL" in case.env:
        assert path == case.env["MODEL"]
    else:
        assert path.removesuffix("-Instruct") == f"Qwen/{case.model}"


@pytest.mark.parametrize("script", sorted({case.script for case in CASES}))
def test_misspelled_script_override_is_refused(script, runs):
    """One key of each script, another one each time."""
    case = next(case for case in CASES if case.script == script)
    run = runs(case)
    plain = [i for i, override in enumerate(run.overrides) if "/" not in override.split("=")[0]]
    i = plain[7 * CASES.index(case) % len(plain)]
    key, value = run.overrides[i].split("=", 1)
    wrong = [*run.overrides[:i], f"{key[:-1]}={value}", *run.overrides[i + 1 :]]
    with pytest.raises(ConfigCompositionException, match=re.escape(f"'{key[:-1]}'")):
        composed("pkg://verl_p2r.config", run.config_name, wrong)


@cases("rl")
def test_rl_script_config_passes_verl_and_our_validation(case, runs, tiny_model):
    config = runs(case).config.copy()
    config.actor_rollout_ref.model.path = str(tiny_model)
    OmegaConf.resolve(config)  # no interpolation leads nowhere
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert isinstance(check_config(config), P2RSettings)
    rename_as_verls_worker_does(config.actor_rollout_ref.ref)
    for node in ("actor", "ref", "rollout", "model"):
        omega_conf_to_dataclass(config.actor_rollout_ref[node])
    with open_dict(config):
        del config.algorithm.p2r  # every other key is verl's
    for node in (config.algorithm, config.trainer.v1.separate_async.hybrid_rollout):
        omega_conf_to_dataclass(node)
    if config.reward.reward_model.enable:
        omega_conf_to_dataclass(config.reward.reward_model)


@cases("rl")
def test_our_rl_classes_can_be_built_from_script_config(case, runs, make_clip, processor, tmp_path):
    config = runs(case).config.copy()
    config.algorithm.p2r.judge.health_check = False  # there is no judge to be asked
    trainer_class = get_trainer_cls(config.trainer.v1.trainer_mode)
    trainer = trainer_class(config)
    assert trainer_class.__module__ == "verl_p2r.plugin.rl.trainer"
    assert trainer.p2r.judge.name in ("openai", "verl", "self")
    assert get_adv_estimator_fn(config.algorithm.adv_estimator)
    fqn = config.actor_rollout_ref.rollout.agent.agent_loop_manager_class
    assert load_class_from_fqn(fqn, "AgentLoopManager").__name__ == "P2RAgentLoopManager"
    manager = get_reward_manager_cls(config.reward.reward_manager.name)(
        config, processor.tokenizer, reward_router_address="127.0.0.1:1"
    )
    assert manager.settings == trainer.p2r

    clip = make_clip(8, 4)
    record = {
        "problem": "How many?",
        "options": "[]",
        "path": f"./{clip.name}",
        "data_source": "toy",
        "problem_id": "1",
    }
    record |= {"data_type": "video", "problem_type": "numerical", "solution": "<answer>3</answer>"}
    file = tmp_path / "part.json.gz"
    file.write_bytes(gzip.compress(json.dumps([record]).encode()))
    config.data.p2r.media_root = str(clip.parent)
    dataset = create_rl_dataset([str(file)], settled(config, tmp_path).data, processor.tokenizer, processor)
    assert len(dataset) == 1
    assert dataset[0]["raw_prompt"]


@cases("sft")
def test_our_sft_classes_can_be_built_from_script_config(case, runs, clips, tiny_model, processor, tmp_path):
    config = runs(case).config.copy()
    config.model.path = str(tiny_model)
    settled(config, tmp_path)
    for node in ("model", "engine", "optim", "checkpoint", "profiler"):
        omega_conf_to_dataclass(config[node])
    response = "<observation>a red square</observation><think>so</think><answer>3</answer>"
    messages = [{"role": "user", "content": "<video>How many?"}, {"role": "assistant", "content": response}]
    pd.DataFrame([{"messages": messages, "videos": [{"video": clips["slow"].name}]}]).to_parquet(tmp_path / "a.parquet")
    config.data.p2r.media_root = str(clips["slow"].parent)
    dataset = create_sft_dataset([str(tmp_path / "a.parquet")], config.data, processor.tokenizer, processor)
    learnt = processor.tokenizer.decode(dataset[0]["input_ids"][dataset[0]["loss_mask"].bool()])
    assert ("<observation>" in learnt) is (case.env.get("ABLATION") != "agnostic_sft")


def settled(config: DictConfig, folder: Path) -> DictConfig:
    """The config with what a data set writes below `folder`."""
    with open_dict(config):
        config.data.cache_dir = str(folder)
    config.data.p2r.screen_cache = str(folder / "screenings")
    config.trainer.default_local_dir = str(folder)
    OmegaConf.resolve(config)
    return config


@cases("rl")
def test_rl_script_token_lengths_are_consistent(case, runs):
    config, model = runs(case).config, MODELS[case.model]
    data, rollout = config.data, config.actor_rollout_ref.rollout
    whole = data.max_prompt_length + data.max_response_length
    assert whole <= rollout.max_model_len <= model.context
    settings = P2RSettings.from_mapping(config.algorithm.p2r)
    assert settings.perception.length.maximum + settings.reasoning.length.maximum < data.max_response_length
    media = DataSettings.from_mapping(data.p2r).media
    for split in (media.train, media.val):
        assert media_tokens(split, model.spec) + TEXT <= data.max_prompt_length
    assert data.image_patch_size == model.spec.patch_size
    # A packed micro-batch holds at least one whole sequence, cut over the GPUs of a sequence-parallel group.
    actor, ref = config.actor_rollout_ref.actor, config.actor_rollout_ref.ref
    assert actor.use_dynamic_bsz or actor.ppo_micro_batch_size_per_gpu == 1
    assert actor.ppo_max_token_len_per_gpu * actor.ulysses_sequence_parallel_size >= whole
    assert rollout.log_prob_max_token_len_per_gpu * actor.ulysses_sequence_parallel_size >= whole
    assert ref.log_prob_max_token_len_per_gpu * ref.ulysses_sequence_parallel_size >= whole


@cases("rl")
def test_rl_script_batch_sizes_divide_evenly(case, runs):
    config, model = runs(case).config, MODELS[case.model]
    actor, rollout, trainer = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.trainer
    gpus, parallel = trainer.nnodes * trainer.n_gpus_per_node, actor.ulysses_sequence_parallel_size
    tensor = rollout.tensor_model_parallel_size
    assert gpus % parallel == 0 == model.heads % parallel
    assert trainer.n_gpus_per_node % tensor == 0 == model.heads % tensor
    assert actor.ppo_mini_batch_size * rollout.n % (gpus // parallel) == 0
    assert config.data.train_batch_size % actor.ppo_mini_batch_size == 0
    if rollout.nnodes:  # GPUs that only sample
        assert rollout.n_gpus_per_node % tensor == 0
    judge = config.reward.reward_model
    if judge.enable:
        assert judge.n_gpus_per_node % judge.rollout.tensor_model_parallel_size == 0
        assert judge.nnodes > 0
    assert cache_settings(config.data).pixels_gib > 0


@cases("sft")
def test_sft_script_sizes_are_consistent(case, runs):
    run, model = runs(case), MODELS[case.model]
    config = run.config
    data, parallel = config.data, config.engine.ulysses_sequence_parallel_size
    assert run.processes == config.trainer.nnodes * config.trainer.n_gpus_per_node
    assert data.train_batch_size % (run.processes // parallel) == 0
    assert media_tokens(DataSettings.from_mapping(data.p2r).media.train, model.spec) + TEXT + 1024 <= data.max_length
    assert data.max_length <= data.max_token_len_per_gpu * parallel
    assert data.max_length <= model.context
    assert config.optim.lr <= 1e-5  # verl's default is 1e-3


ABLATIONS = {
    "no_reasoning": {"reasoning": {"enabled": False}},
    "no_length": {"length_reward": False},
    "no_separation": {"separate": False},
    "rl_only": {},
    "grpo": {"perception": {"enabled": False}},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_config_differs_from_paper_only_in_its_switch(name, runs):
    by_name = {case.env.get("ABLATION"): case for case in CASES if case.script == "ablation.sh"}
    ours = next(case for case in CASES if case.script == "pa_grpo_7b.sh")
    config, whole = runs(by_name[name]).config.copy(), runs(ours).config.copy()
    judge = OmegaConf.to_container(whole.algorithm.p2r.judge)
    assert check_config(config) == P2RSettings.from_mapping({"judge": judge, **ABLATIONS[name]})
    assert config.algorithm.adv_estimator == ("grpo" if name == "grpo" else "pa_grpo")
    for other in (config, whole):  # the rest is the same
        other.algorithm = other.actor_rollout_ref.model.path = None
        other.trainer.default_local_dir = other.trainer.validation_data_dir = other.trainer.experiment_name = None
    assert config == whole


def test_without_a_judge_only_the_judge_differs(runs):
    ours, whole = (
        runs(next(case for case in CASES if case.script == script)).config.copy()
        for script in ("pa_grpo_7b_self.sh", "pa_grpo_7b.sh")
    )
    assert ours.algorithm.p2r.judge.name == "self"
    assert ours.actor_rollout_ref.rollout.agent.default_agent_loop == "p2r_self_judge"
    for config in (ours, whole):  # the rest is the same
        config.algorithm.p2r.judge = config.actor_rollout_ref.rollout.agent.default_agent_loop = None
        config.trainer.default_local_dir = config.trainer.validation_data_dir = config.trainer.experiment_name = None
    assert ours == whole


def test_7b_script_settings_equal_paper(runs):
    sft, rl = (
        runs(next(case for case in CASES if case.script == f"{name}.sh")).config for name in ("sft_7b", "pa_grpo_7b")
    )
    assert (sft.trainer.total_epochs, sft.data.train_batch_size) == (1, 8 * 2)
    assert sft.data.p2r.process_aware
    assert (rl.trainer.total_training_steps, rl.data.train_batch_size, rl.actor_rollout_ref.rollout.n) == (1000, 56, 8)
    for config in (sft, rl):
        assert (config.data.p2r.media.train.max_frames, config.data.p2r.media.train.video_max_pixels) == (
            16,
            128 * 28 * 28,
        )
    assert (rl.data.p2r.media.val.max_frames, rl.data.p2r.media.val.video_max_pixels) == (32, 256 * 28 * 28)
    assert not any(rl.algorithm.p2r.judge.guards.values())


@pytest.mark.parametrize(
    ("script", "env", "what"),
    [
        ("pa_grpo_7b.sh", {}, "MODEL"),
        ("pa_grpo_7b_judge_in_cluster.sh", {}, "MODEL"),
        ("pa_grpo_7b_self.sh", {}, "MODEL"),
        ("pa_grpo_7b_judge_external.sh", {**START, "JUDGE_MODEL": "judge"}, "JUDGE_URLS"),
        ("ablation.sh", START, "ABLATION"),
        ("ablation.sh", {**START, "ABLATION": "no_judge"}, "ABLATION=no_judge is unknown"),
    ],
)
def test_script_names_missing_variable(script, env, what, tmp_path):
    done, command = call(script, env, tmp_path)
    assert done.returncode != 0
    assert not command
    assert what in done.stderr


def test_script_makes_paths_absolute_and_appends_user_overrides(tmp_path):
    (tmp_path / "start").mkdir()
    done, command = call(
        "pa_grpo_7b.sh", {"MODEL": "start", "DATA": "rows"}, tmp_path, "data.seed=3", "trainer.logger=[a b]"
    )
    assert done.returncode == 0, done.stderr
    assert command[-2:] == ["data.seed=3", "trainer.logger=[a b]"]
    assert f"actor_rollout_ref.model.path='{tmp_path}/start'" in command
    assert f"data.val_files='{tmp_path}/rows/rl/val.parquet'" in command
