# SPDX-License-Identifier: Apache-2.0
"""The start of our trainers: which configs are refused, and when the judge and the datasets are checked."""

from types import SimpleNamespace

import pytest
from cpu_config import make_config
from rollout_rows import make_trainer
from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from verl_p2r.plugin.rl.trainer import POLL_S, P2RTrainerSync, check_config

pytestmark = pytest.mark.slow  # a server for each test, and imports of verl


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.reward_manager.name=naive"], "'naive'.*set reward.reward_manager.name=p2r"),
        (["reward.reward_model.enable=True"], "colocated reward model.*enable_resource_pool=True.*or judge over a URL"),
        (
            ["reward.reward_model.enable=True", "reward.reward_model.enable_resource_pool=True"],
            "leave the reward manager 'p2r' out.*reward.reward_model.enable=False",
        ),
        (
            ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=acc"],
            "'acc'.*constant.*algorithm.filter_groups.metric=both_rewards",
        ),
        (["algorithm.filter_groups.enable=True"], "'reward'.*algorithm.filter_groups.metric=both_rewards"),
        (
            ["algorithm.p2r.separate=True", "algorithm.p2r.perception.enabled=False"],
            "separate is true but perception.enabled is false.*set separate: null",
        ),
        (["algorithm.p2r.perception.enabled=False", "algorithm.p2r.reasoning.enabled=False"], "switch at least one on"),
        (
            ["algorithm.p2r.cross_credit=0.5", "algorithm.p2r.separate=False"],
            "algorithm.p2r.cross_credit is 0.5, but the advantages are not separated.*set cross_credit: 0",
        ),
        (
            ["algorithm.adv_estimator=grpo", "algorithm.p2r.cross_credit=0.5"],
            "adv_estimator is 'grpo', verl's own.*none of.*set algorithm.adv_estimator=pa_grpo, or cross_credit=0",
        ),
        (["algorithm.adv_estimator=grpo", "algorithm.p2r.separate=True"], "adv_estimator is 'grpo', verl's own"),
        (["algorithm.adv_estimator=grpo", "algorithm.p2r.segment_weighting=segment"], "segment_weighting=token"),
        (["algorithm.p2r.judge.name=oracle"], "'oracle' is unknown: use one of .*facts.*module:Class"),
        (["algorithm.p2r.judge.name=no.such:Judge"], "cannot be imported"),
        (["+algorithm.p2r.judge.kwargs.url=x"], "kwargs does not fit judge 'facts'.*it takes"),
        (["p2r/judge=openai"], "algorithm.p2r.judge.kwargs.model is not set"),
        (["p2r/judge=openai", "algorithm.p2r.judge.kwargs={model:m,base_urls:[here]}"], "'here' is not a URL"),
        (["algorithm.p2r.judge.name=verl"], "judge.name is verl, which needs reward.reward_model.enable=True"),
        (
            ["algorithm.p2r.judge.name=self"],
            "judge.name is self, which reads the policy's second answer.*'single_turn_agent' does not.*p2r/judge=self",
        ),
        (["p2r/judge=self", "algorithm.p2r.judge.kwargs.threshold=2"], "kwargs.threshold is 2: give an accuracy"),
        (["p2r/judge=self", "algorithm.p2r.judge.second_answer.max_tokens=0"], "second_answer.max_tokens is 0: give"),
        (["+algorithm.p2r.seperate=False"], "algorithm.p2r.seperate does not exist: did you mean separate"),
        (["+algorithm.p2r.reasoning.length.min=1"], "algorithm.p2r.reasoning.length.min does not exist"),
    ],
)
def test_invalid_trainer_config_is_refused_with_remedy(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_config(make_config(*overrides))


def test_valid_trainer_configs_are_accepted():
    assert check_config(make_config()).separated
    check_config(make_config("algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=both_rewards"))
    pool = ["reward.reward_model.enable=True", "reward.reward_model.enable_resource_pool=True"]
    check_config(make_config(*pool, "reward.custom_reward_function.path=judge.py"))
    check_config(make_config("p2r/judge=openai", "algorithm.p2r.judge.kwargs.model=m"))
    check_config(make_config("p2r/judge=verl", "reward.reward_model.model_path=judge"))
    check_config(make_config("p2r/judge=self", "algorithm.p2r.judge.kwargs.compare_with={name:facts}"))
    check_config(make_config("algorithm.p2r.judge.name=self", "algorithm.p2r.perception.enabled=False"))
    check_config(make_config("~algorithm.p2r"))
    check_config(make_config("algorithm.adv_estimator=grpo", "algorithm.p2r.perception.enabled=False"))


def started(monkeypatch, *overrides: str):
    """A trainer whose `__init__` and `on_init_end` ran, without verl's own part of them."""
    monkeypatch.setattr(PPOTrainer, "__init__", lambda self, config: setattr(self, "config", config))
    monkeypatch.setattr(PPOTrainerSync, "on_init_end", lambda self: None)
    trainer = P2RTrainerSync(make_config("trainer.v1.trainer_mode=p2r_sync", *overrides))
    return trainer


def openai_at(server) -> list[str]:
    kwargs = f"algorithm.p2r.judge.kwargs={{model:judge,base_urls:['{server.base_url}'],deadline_s:2,timeout_s:1}}"
    return ["p2r/judge=openai", kwargs, "algorithm.p2r.judge.kwargs.connect_timeout_s=1"]


def test_run_starts_with_healthy_judge(monkeypatch, judge_server):
    started(monkeypatch, *openai_at(judge_server))
    assert [call.outcome for call in judge_server.calls()] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"yes_when": "."}, "the known No got Yes: As asked"),
        ({"yes_when": "no such text"}, "the known Yes got No: As asked"),
        ({"api_key": "another"}, "HTTP 401.*the server rejected the API key in \\$OPENAI_API_KEY"),
        ({"models": ["another"]}, "HTTP 404.*the server has no model 'judge'"),
        (
            {"shares": {"no_judgement": 1.0}},
            "the known Yes got no verdict: .*no judgement in the reply: 'I cannot",
        ),
        ({"shares": {"hang": 1.0}}, "no usable reply within 2 s; last failure: .*did not reply within 1 s"),
    ],
)
def test_failed_judge_health_check_stops_run_before_it_starts(monkeypatch, judge_server, script, message):
    judge_server.control(**script)
    monkeypatch.setattr(PPOTrainer, "__init__", lambda *_: pytest.fail("verl's trainer was built"))
    with pytest.raises(
        RuntimeError, match=rf"(?s)judge 'openai' fails its health check.*{message}.*health_check=False"
    ):
        P2RTrainerSync(make_config("trainer.v1.trainer_mode=p2r_sync", *openai_at(judge_server)))


@pytest.mark.parametrize(
    "override", ["algorithm.p2r.judge.health_check=False", "algorithm.p2r.perception.enabled=False"]
)
def test_judge_health_check_is_skipped_when_not_needed(monkeypatch, judge_server, override):
    started(monkeypatch, *openai_at(judge_server), override)
    assert not judge_server.calls()


def test_verl_judge_is_checked_after_its_servers_start(monkeypatch, judge_server):
    trainer = started(monkeypatch, "p2r/judge=verl", "reward.reward_model.model_path=judge")
    assert not judge_server.calls()
    trainer.reward_loop_manager = SimpleNamespace(reward_router_address=judge_server.url.removeprefix("http://"))
    trainer.on_init_end()
    assert len(judge_server.calls()) == 2


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_verl_sees_its_own_trainer_mode_name(monkeypatch, mode):
    """verl compares that name and indexes `trainer.v1` with it; an unknown one would silently mean asynchronous."""
    seen = []

    def init(self, config):
        self.config = config
        seen.append(config.trainer.v1[config.trainer.v1.trainer_mode])

    monkeypatch.setattr(PPOTrainer, "__init__", init)
    config = make_config(
        f"trainer.v1.trainer_mode=p2r_{mode}",
        "trainer.v1.separate_async.parameter_sync_step=1",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
    )
    trainer = get_trainer_cls(f"p2r_{mode}")(config)
    assert config.trainer.v1.trainer_mode == mode
    assert seen == [config.trainer.v1[mode]]
    assert trainer.p2r == check_config(config)


@pytest.mark.parametrize(("mode", "seconds"), [("sync", POLL_S), ("colocate_async", POLL_S), ("separate_async", 2.0)])
def test_rollouts_are_looked_for_more_often_than_every_two_seconds(mode, seconds):
    trainer = make_trainer(cls=get_trainer_cls(f"p2r_{mode}"))
    trainer.trainer_mode = mode
    assert PPOTrainer._build_replay_buffer(trainer).poll_interval == 2.0
    assert trainer._build_replay_buffer().poll_interval == seconds


def test_invalid_config_is_refused_before_verl_trainer_is_built(monkeypatch):
    monkeypatch.setattr(PPOTrainer, "__init__", lambda *_: pytest.fail("verl's trainer was built"))
    with pytest.raises(ValueError, match=r"reward\.reward_manager\.name"):
        P2RTrainerSync(make_config("reward.reward_manager.name=naive"))


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [
        ([], ["train", "val"]),
        (["algorithm.p2r.perception.enabled=False"], []),
        (["p2r/judge=self"], []),
        (["p2r/judge=self", "algorithm.p2r.judge.kwargs.compare_with={name:facts}"], ["train", "val"]),
    ],
    ids=["facts needed", "perception off", "self", "self compared with facts"],
)
def test_trainer_requires_facts_from_datasets_when_judge_needs_them(monkeypatch, overrides, asked):
    """A row without facts would otherwise fail inside an agent loop, where verl goes on without its prompt."""
    calls = []

    def init_dataloader(self):
        self.train_dataset = SimpleNamespace(require_facts=lambda: calls.append("train"))
        self.val_dataset = SimpleNamespace(require_facts=lambda: calls.append("val"))

    monkeypatch.setattr(PPOTrainer, "_init_dataloader", init_dataloader)
    make_trainer(*overrides)._init_dataloader()
    assert calls == asked
