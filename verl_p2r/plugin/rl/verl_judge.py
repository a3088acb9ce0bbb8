# SPDX-License-Identifier: Apache-2.0
"""The judge `verl`: the judge `openai` on a generative reward model that verl serves behind its own router.

`p2r/judge=verl` sets everything except the model and its GPUs:

    reward.reward_model.model_path                 the judge's weights
    reward.reward_model.{n_gpus_per_node,nnodes}   the GPUs of its separate resource pool

verl's router turns a refusal of the server (such as a prompt that is too long) into HTTP 500, so it is retried until
the deadline.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from verl_p2r.judge import Judge, get_judge
from verl_p2r.judge.combined import named_judges
from verl_p2r.settings import P2RSettings


def make_judge(config: DictConfig, settings: P2RSettings, reward_router_address: str | None = None) -> Judge:
    """Build the judge that the config names.

    Args:
        config: verl's whole config.
        settings: its node `algorithm.p2r`.
        reward_router_address: host and port of verl's router; None before it exists, to check only the options.

    Raises:
        ValueError: an unknown judge, unknown options, a soft reward from a judge that gives no probabilities, or, for
            `verl`, a reward model that is not set up.
    """
    judge = settings.judge
    made = get_judge(judge.name, **_with_address(config, judge.name, judge.kwargs, reward_router_address))
    if judge.soft and not getattr(made, "gives_probabilities", False):
        raise ValueError(
            f"algorithm.p2r.judge.soft is true, but the judge {judge.name!r} gives no probabilities: set kwargs.reply "
            "of each model judge to single_token, or soft to False"
        )
    return made


def asks_verl(settings: P2RSettings) -> bool:
    """Tell whether the judge, or another one that it asks, is a model that verl serves."""
    return "verl" in dict(named_judges(settings.judge.name, settings.judge.kwargs))


def _with_address(
    config: DictConfig, name: str, kwargs: Mapping[str, Any], reward_router_address: str | None
) -> Mapping[str, Any]:
    """Fill in the options of `verl`, also of a member of a combined judge and of one that `self` is compared with."""

    def filled(judge: Any) -> Any:
        if not isinstance(judge, Mapping):
            return judge
        options = _with_address(config, str(judge.get("name")), judge.get("kwargs") or {}, reward_router_address)
        return {**judge, "kwargs": options}

    if isinstance(kwargs.get("members"), Mapping):
        return {**kwargs, "members": {label: filled(member) for label, member in kwargs["members"].items()}}
    if kwargs.get("compare_with"):
        return {**kwargs, "compare_with": filled(kwargs["compare_with"])}
    if name != "verl":
        return kwargs
    _check_reward_model(config)
    served = {
        "model": _served_name(config.reward.reward_model),
        "base_urls": f"http://{reward_router_address or 'not-yet-known'}/v1",
        "api_key_env": None,
        "use_proxy": False,
    }
    taken = sorted(served.keys() & kwargs.keys())
    if taken:
        raise ValueError(
            f"algorithm.p2r.judge.kwargs sets {', '.join(taken)}, which the judge verl takes from reward.reward_model: "
            "remove it, or set algorithm.p2r.judge.name=openai to use your own server"
        )
    return {**served, **kwargs}


def _check_reward_model(config: DictConfig) -> None:
    model = config.reward.reward_model
    wrong = [
        f"{key}={wanted}"
        for key, wanted, found in (
            ("enable", True, model.enable),
            ("enable_resource_pool", True, model.enable_resource_pool),
            # verl puts the servers to sleep and only wakes those of a colocated reward model.
            ("rollout.free_cache_engine", False, model.rollout.free_cache_engine),
        )
        if found is not wanted
    ]
    if wrong or not model.model_path:
        needs = [f"reward.reward_model.{key}" for key in (*wrong, *([] if model.model_path else ["model_path"]))]
        raise ValueError(
            f"algorithm.p2r.judge.name is verl, which needs {', '.join(needs)}: choose p2r/judge=verl, which sets all "
            "but the model's path and its GPUs"
        )


def _served_name(reward_model: DictConfig) -> str:
    """The model's name on verl's servers: its path, unless the rollout's Prometheus settings name it."""
    prometheus = reward_model.rollout.get("prometheus") or {}
    name = prometheus.get("served_model_name") if prometheus.get("enable") else None
    return name.rsplit("/", 1)[-1] if name else reward_model.model_path


def compute_score(*_args: Any, **_kwargs: Any) -> float:
    """Stand in for `reward.custom_reward_function`, without which verl would ask the model for a scalar.

    The reward manager `p2r` never calls it.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("the reward manager p2r scores by itself: set reward.reward_manager.name=p2r")
