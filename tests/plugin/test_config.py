# SPDX-License-Identifier: Apache-2.0
"""The YAML under `pkg://verl_p2r.config`: it composes as verl's entry points compose it, and verl accepts it."""

import dataclasses

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.import_utils import load_class_from_fqn, load_extern_type

from verl_p2r.plugin.rl.trainer import check_config
from verl_p2r.settings import P2RSettings

PPO = ["p2r_ppo", "p2r_ppo_cpu", "p2r_ppo_qwen3_5"]
SFT = ["p2r_sft", "p2r_sft_cpu", "p2r_sft_qwen3_5"]
SIZES = {  # what a user of the config must still say
    "p2r_ppo": [],
    "p2r_ppo_qwen3_5": [],
    "p2r_ppo_cpu": [
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
    ],
}


def composed(name: str, *overrides: str):
    """As `--config-path pkg://verl_p2r.config --config-name NAME overrides` composes it."""
    with initialize_config_module("verl_p2r.config", version_base=None):
        return compose(name, list(overrides))


@pytest.mark.parametrize("name", PPO)
def test_ppo_config_passes_verl_and_our_validation(name):
    config = composed(name, *SIZES[name])
    assert need_reference_policy(config)  # the KL term of Eq. 7
    assert not need_critic(config)
    validate_config(config, use_reference_policy=True, use_critic=False)
    assert check_config(config) == P2RSettings()


@pytest.mark.parametrize("name", PPO)
def test_ppo_config_converts_to_verl_dataclasses(name, tiny_model):
    config = composed(name, *SIZES[name], f"actor_rollout_ref.model.path={tiny_model}")
    OmegaConf.resolve(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.optim.lr) == (True, 0.04, 1e-6)
    assert (rollout.n, rollout.calculate_log_probs) == (8, True)
    assert model.hf_config.model_type == "qwen2_5_vl"
    assert config.algorithm.adv_estimator == "pa_grpo"


@pytest.mark.parametrize("name", SFT)
def test_sft_config_converts_to_verl_dataclasses(name, tiny_model):
    config = composed(name, f"model.path={tiny_model}")
    OmegaConf.resolve(config)
    made = {
        node: omega_conf_to_dataclass(config[node]) for node in ("model", "engine", "optim", "checkpoint", "profiler")
    }
    assert made["model"].hf_config.model_type == "qwen2_5_vl"
    assert config.data.truncation == "error"  # the other ways cut ids but not pixels
    assert config.trainer.total_epochs == 1


@pytest.mark.parametrize("name", [*PPO, *SFT])
def test_every_import_path_in_config_resolves(name):
    config = composed(name)
    assert load_extern_type(config.data.custom_cls.path, config.data.custom_cls.name).__name__.startswith("P2R")
    if name in PPO:
        fqn = config.actor_rollout_ref.rollout.agent.agent_loop_manager_class
        assert load_class_from_fqn(fqn, "AgentLoopManager").__name__ == "P2RAgentLoopManager"


@pytest.mark.parametrize("name", PPO)
def test_yaml_defaults_equal_settings_defaults(name):
    """Key for key: a user reads the YAML, the code reads the dataclass."""
    node = OmegaConf.to_container(composed(name).algorithm.p2r)
    assert P2RSettings.from_mapping(node) == P2RSettings()

    assert node == dataclasses.asdict(P2RSettings())


@pytest.mark.parametrize("name", PPO)
def test_only_cpu_config_sets_cpu_options(name):
    """The CPU's settings stay in the CPU's config."""
    cpu = name.endswith("_cpu")
    config = composed(name)
    assert (config.trainer.device == "cpu") is cpu
    assert (config.actor_rollout_ref.rollout.dtype == "float32") is cpu
    assert (config.actor_rollout_ref.rollout.free_cache_engine is False) is cpu


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("p2r_ppo", "algorithm.p2r.seperate=False"),
        ("p2r_ppo", "algorithm.p2r.judge.nam=facts"),
        ("p2r_ppo_cpu", "trainer.p2r.stall_timeout=60"),
        ("p2r_ppo_cpu", "actor_rollout_ref.rollout.nn=8"),
        ("p2r_sft", "data.train_batchsize=8"),
        ("p2r_sft_cpu", "engine.model_dtyp=fp32"),
    ],
)
def test_misspelled_override_is_refused(name, override):
    with pytest.raises(ConfigCompositionException, match="Could not override"):
        composed(name, override)


@pytest.mark.parametrize("judge", ["openai", "verl", "visual"])
def test_fields_of_the_judges_request_are_added_with_a_plus(judge):
    override = "+algorithm.p2r.judge.kwargs.extra_body={chat_template_kwargs:{enable_thinking:False}}"
    config = composed("p2r_ppo", f"p2r/judge={judge}", override)
    assert config.algorithm.p2r.judge.kwargs.extra_body == {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        (["algorithm.p2r.perception.enabled=False"], {"perception": {"enabled": False}}),
        (["algorithm.p2r.reasoning.enabled=False"], {"reasoning": {"enabled": False}}),
        (["algorithm.p2r.length_reward=False"], {"length_reward": False}),
        (["algorithm.p2r.separate=False"], {"separate": False}),
        (["algorithm.p2r.segment_weighting=segment"], {"segment_weighting": "segment"}),
        (["algorithm.p2r.cross_credit=0.5"], {"cross_credit": 0.5}),
        (["algorithm.adv_estimator=grpo"], {}),
    ],
    ids=["no R_P", "no R_R", "no R_len", "no separation", "segment weighting", "cross credit", "GRPO on the sum"],
)
def test_each_ablation_is_one_override(overrides, settings):
    config = composed("p2r_ppo", *overrides)
    validate_config(config, use_reference_policy=True, use_critic=False)
    assert check_config(config) == P2RSettings.from_mapping(settings)
