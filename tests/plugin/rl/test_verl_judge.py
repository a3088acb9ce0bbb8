# SPDX-License-Identifier: Apache-2.0
"""The judge on verl's own reward model: which config it needs, and the address at which it asks."""

import asyncio
import dataclasses

import pytest
from cpu_config import make_config
from omegaconf import OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager

from verl_p2r.judge import check_judge
from verl_p2r.judge.openai_judge import OpenAIJudge
from verl_p2r.judge.registry import signature_of
from verl_p2r.judge.visual_judge import VisualJudge
from verl_p2r.plugin.rl.trainer import check_config
from verl_p2r.plugin.rl.verl_judge import asks_verl, make_judge
from verl_p2r.settings import P2RSettings

CHOSEN = ["p2r/judge=verl", "reward.reward_model.model_path=judge"]


def judge_of(*overrides: str, address: str | None = None):
    config = make_config(*overrides)
    return make_judge(config, check_config(config), address)


def test_verl_judge_preset_is_a_complete_config():
    config = make_config(*CHOSEN)
    assert check_config(config).judge.guards.answer_only
    with pytest.raises(RuntimeError, match=r"the reward manager p2r scores by itself"):
        get_custom_reward_fn(config)()  # verl loads it, and our manager never calls it


@pytest.mark.parametrize("name", ["openai", "verl", "visual"])
def test_judge_presets_list_every_option_with_default(name):
    """A user reads the YAML, the code reads the signature."""
    shown = OmegaConf.to_container(make_config(f"p2r/judge={name}").algorithm.p2r.judge.kwargs, resolve=True)
    cls = VisualJudge if name == "visual" else OpenAIJudge
    options = {key: parameter.default for key, parameter in signature_of(cls).parameters.items()}
    if name == "verl":  # which fills these in itself
        del options["model"], options["base_urls"], options["api_key_env"], options["use_proxy"]
    else:
        assert (shown.pop("model"), shown.pop("base_urls")) == (None, ["http://localhost:8000/v1"])
        del options["model"], options["base_urls"]
    options["extra_body"] = {}  # what None means
    if name == "visual":  # the policy's folder of frames
        assert (shown.pop("frame_cache"), shown.pop("frame_cache_gib")) == (None, options.pop("frame_cache_gib"))
        del options["frame_cache"]
    assert shown == options


MODELS = [f"algorithm.p2r.judge.kwargs.members.{member}.kwargs.model=judge" for member in ("text", "video")]


@pytest.mark.parametrize(("name", "labels"), [("all", "text video"), ("any", "facts text"), ("weighted", "text video")])
def test_a_preset_combines_two_judges_and_needs_only_their_models(name, labels):
    config = make_config(f"p2r/judge={name}", *(model for model in MODELS if model.split(".")[5] in labels))
    settings = check_config(config)
    assert make_judge(config, settings).labels == tuple(labels.split())
    assert settings.judge.guards.answer_only
    with pytest.raises(ValueError, match=r"member text: .*model is not set"):
        check_config(make_config(f"p2r/judge={name}"))


def test_members_are_added_and_removed_by_an_override():
    more = "+algorithm.p2r.judge.kwargs.members.facts={name:facts}"
    judge = judge_of("p2r/judge=all", MODELS[0], "~algorithm.p2r.judge.kwargs.members.video", more)
    assert judge.labels == ("text", "facts")


def test_verls_model_as_a_member_is_asked_at_the_routers_address(judge_server):
    """Also inside another combined judge; it is checked when its servers run."""
    inner = "{name:any,kwargs:{members:{own:{name:verl},facts:{name:facts}}}}"
    members = f"{{facts:{{name:facts}},inner:{inner}}}"
    kwargs = ["~algorithm.p2r.judge.kwargs", f"+algorithm.p2r.judge.kwargs={{members:{members}}}"]
    chosen = [*CHOSEN, "algorithm.p2r.judge.name=all", *kwargs]
    config = make_config(*chosen)
    assert asks_verl(P2RSettings.from_mapping(config.algorithm.p2r))
    judge = judge_of(*chosen, address=judge_server.url.removeprefix("http://"))
    assert judge.members["inner"].members["own"].base_urls == [judge_server.base_url]
    assert judge.members["inner"].members["own"].model == "judge"
    assert not asks_verl(P2RSettings.from_mapping(make_config("p2r/judge=openai").algorithm.p2r))


def test_a_soft_reward_needs_probabilities():
    soft = ["p2r/judge=openai", "algorithm.p2r.judge.kwargs.model=judge", "algorithm.p2r.judge.soft=True"]
    assert judge_of(*soft, "algorithm.p2r.judge.kwargs.reply=single_token").gives_probabilities
    with pytest.raises(ValueError, match=r"judge 'openai' gives no probabilities: set kwargs\.reply .*single_token"):
        judge_of(*soft)


def test_the_visual_judge_shares_the_policys_frames(tmp_path):
    folder = f"data.p2r.media_cache.directory={tmp_path}/frames"
    judge_of("p2r/judge=visual", "algorithm.p2r.judge.kwargs.model=judge", folder)
    assert (tmp_path / "frames").is_dir()


def test_guards_are_off_by_default_and_on_in_llm_judge_presets():
    def guards(*overrides):
        return dataclasses.astuple(P2RSettings.from_mapping(make_config(*overrides).algorithm.p2r).judge.guards)

    assert guards() == guards("p2r/judge=facts") == (False, False)
    assert guards("p2r/judge=openai") == guards("p2r/judge=verl") == (True, True)
    off = "algorithm.p2r.judge.guards={answer_only:False,copied_question:False}"
    assert guards("p2r/judge=openai", off) == (False, False)


def test_reward_manager_built_by_verl_asks_router_address(judge_server):
    """As `RewardLoopWorker` builds it; the test server stands in for the router, which passes requests on."""
    config = make_config(*CHOSEN)
    address = judge_server.url.removeprefix("http://")
    manager = load_reward_manager(config, None, reward_router_address=address, reward_model_tokenizer=None)

    async def main():
        await check_judge(manager.judge, "verl")
        await manager.judge.aclose()

    asyncio.run(main())
    assert [call.outcome for call in judge_server.calls()] == ["ok", "ok"]


def test_verl_judge_uses_served_model_name():
    assert judge_of(*CHOSEN).model == "judge"
    assert judge_of("p2r/judge=verl", "reward.reward_model.model_path=/models/judge").model == "/models/judge"
    prometheus = "+reward.reward_model.rollout.prometheus={enable:True,served_model_name:/models/other}"
    assert judge_of(*CHOSEN, prometheus).model == "other"
    assert judge_of(*CHOSEN, prometheus.replace("True", "False")).model == "judge"


def test_verl_judge_sends_no_openai_key(judge_server, monkeypatch):
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
def test_invalid_verl_judge_config_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        judge_of(*overrides)
