# SPDX-License-Identifier: Apache-2.0
"""The judge on verl's own reward model: which config it needs, and the address at which it asks."""

import asyncio
import dataclasses
import inspect

import pytest
from cpu_config import make_config
from omegaconf import OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager

from verl_p2r.judge import check_judge
from verl_p2r.judge.openai_judge import OpenAIJudge
from verl_p2r.plugin.rl.trainer import check_config
from verl_p2r.plugin.rl.verl_judge import make_judge
from verl_p2r.settings import P2RSettings

CHOSEN = ["p2r/judge=verl", "reward.reward_model.model_path=judge"]


def judge_of(*overrides: str, address: str | None = None):
    config = make_config(*overrides)
    return make_judge(config, check_config(config), address)


def test_the_preset_is_all_that_verl_needs():
    config = make_config(*CHOSEN)
    assert check_config(config).judge.guards.answer_only
    with pytest.raises(RuntimeError, match=r"the reward manager p2r scores by itself"):
        get_custom_reward_fn(config)()  # verl loads it, and our manager never calls it


@pytest.mark.parametrize("name", ["openai", "verl"])
def test_a_preset_shows_every_option_with_its_default(name):
    """A user reads the YAML, the code reads the signature."""
    shown = OmegaConf.to_container(make_config(f"p2r/judge={name}").algorithm.p2r.judge.kwargs)
    options = {key: parameter.default for key, parameter in inspect.signature(OpenAIJudge).parameters.items()}
    if name == "verl":  # which fills these in itself
        del options["model"], options["base_urls"], options["api_key_env"], options["use_proxy"]
    else:
        assert (shown.pop("model"), shown.pop("base_urls")) == (None, ["http://localhost:8000/v1"])
        del options["model"], options["base_urls"]
    options["extra_body"] = {}  # what None means
    assert shown == options


def test_the_paper_has_no_guards_and_our_presets_have_both():
    def guards(*overrides):
        return dataclasses.astuple(P2RSettings.from_mapping(make_config(*overrides).algorithm.p2r).judge.guards)

    assert guards() == guards("p2r/judge=facts") == (False, False)
    assert guards("p2r/judge=openai") == guards("p2r/judge=verl") == (True, True)
    off = "algorithm.p2r.judge.guards={answer_only:False,copied_question:False}"
    assert guards("p2r/judge=openai", off) == (False, False)


def test_the_manager_that_verl_builds_asks_at_the_routers_address(judge_server):
    """As `RewardLoopWorker` builds it; the test server stands in for the router, which passes requests on."""
    config = make_config(*CHOSEN)
    address = judge_server.url.removeprefix("http://")
    manager = load_reward_manager(config, None, reward_router_address=address, reward_model_tokenizer=None)

    async def main():
        await check_judge(manager.judge, "verl")
        await manager.judge.aclose()

    asyncio.run(main())
    assert [call.outcome for call in judge_server.calls()] == ["ok", "ok"]


def test_the_model_goes_by_the_name_under_which_verl_serves_it():
    assert judge_of(*CHOSEN).model == "judge"
    assert judge_of("p2r/judge=verl", "reward.reward_model.model_path=/models/judge").model == "/models/judge"
    prometheus = "+reward.reward_model.rollout.prometheus={enable:True,served_model_name:/models/other}"
    assert judge_of(*CHOSEN, prometheus).model == "other"
    assert judge_of(*CHOSEN, prometheus.replace("True", "False")).model == "judge"


def test_no_key_of_another_service_is_sent(judge_server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    judge_server.control(api_key="secret")
    judge = judge_of(*CHOSEN, address=judge_server.url.removeprefix("http://"))

    async def main():
        try:
            await check_judge(judge, "verl")
        finally:
            await judge.aclose()

    with pytest.raises(RuntimeError, match="HTTP 401"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.p2r.judge.name=verl"], r"enable=True, .*enable_resource_pool=True, .*free_cache_engine=False, "),
        (["p2r/judge=verl"], r"needs reward\.reward_model\.model_path: choose p2r/judge=verl"),
        ([*CHOSEN, "reward.reward_model.rollout.free_cache_engine=True"], r"needs .*rollout\.free_cache_engine=False:"),
        ([*CHOSEN, "+algorithm.p2r.judge.kwargs.base_urls=[]"], r"kwargs sets base_urls, which the judge verl takes"),
        ([*CHOSEN, "+algorithm.p2r.judge.kwargs.modle=a"], r"kwargs does not fit judge 'verl'.*'modle'"),
        ([*CHOSEN, "algorithm.p2r.judge.kwargs.concurrency=0"], r"concurrency is 0: give 1 to 1000"),
    ],
)
def test_a_config_that_cannot_work_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        judge_of(*overrides)
