# SPDX-License-Identifier: Apache-2.0
"""How a judge is found: by a registered name, by an entry point, or by `module:Class`."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from verl_p2r.judge.protocol import Judge
from verl_p2r.registry import Registry, import_path

J = TypeVar("J", bound=type)

# Paths, so that only a run that asks a model loads a network client.
_JUDGES: Registry[type[Any]] = Registry(
    "judge name",
    "verl_p2r.judges",
    {
        "facts": "verl_p2r.judge.facts_judge:FactsJudge",
        "openai": "verl_p2r.judge.openai_judge:OpenAIJudge",
        "self": "verl_p2r.judge.self_judge:SelfJudge",
        "verl": "verl_p2r.judge.openai_judge:OpenAIJudge",  # verl_p2r.plugin.rl.verl_judge fills in the address
        "visual": "verl_p2r.judge.visual_judge:VisualJudge",
        "all": "verl_p2r.judge.all_judge:AllJudge",
        "any": "verl_p2r.judge.any_judge:AnyJudge",
        "weighted": "verl_p2r.judge.weighted_judge:WeightedJudge",
    },
)


def register_judge(name: str) -> Callable[[J], J]:
    """Register a judge class under a name for `algorithm.p2r.judge.name`.

    The module that uses this decorator must be imported by every worker. An installed package can use an entry point
    of the group `verl_p2r.judges` instead, for example `words = "my_package.judges:WordsJudge"`.

    Args:
        name: The name; it must not contain a `:`, which marks an import path.

    Raises:
        ValueError: Another class has this name, or it contains a `:`.
    """
    if ":" in name:
        raise ValueError(f"judge name {name!r}: a `:` marks an import path, choose a name without it")

    def register(cls: J) -> J:
        _JUDGES.register(name, cls)
        return cls

    return register


def get_judge(name: str, where: str = "algorithm.p2r.judge", /, **kwargs: Any) -> Judge:
    """Build a judge from its registered name or from `module:Class`.

    Args:
        name: The value of `algorithm.p2r.judge.name`.
        where: The settings node, for messages.
        **kwargs: The value of `algorithm.p2r.judge.kwargs`, passed to the class.

    Raises:
        ValueError: The judge, module or class does not exist, the class does not take these options, or it has no
            async `judge` method.

    >>> type(get_judge("facts")).__name__
    'FactsJudge'
    """
    cls = import_path(name, f"{where}.name {name!r}") if ":" in name else _JUDGES.find(name)
    if cls is None:
        raise ValueError(
            f"{where}.name {name!r} is unknown: use one of {', '.join(sorted(_JUDGES.names()))}, "
            "or module:Class for a judge of your own"
        )
    if not inspect.iscoroutinefunction(getattr(cls, "judge", None)):
        raise ValueError(f"{where}.name {name!r} has no `async def judge(self, request)`: add one")
    signature = signature_of(cls)
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise ValueError(f"{where}.kwargs does not fit judge {name!r}: {error}; it takes {signature}") from None
    return cls(**kwargs)


def signature_of(cls: type[Any]) -> inspect.Signature:
    """Return what a class takes; where its constructor passes `**options` on, its base's parameters replace those.

    >>> class Base:
    ...     def __init__(self, size: int = 1): ...
    >>> class Derived(Base):
    ...     def __init__(self, name: str, **options): super().__init__(**options)
    >>> str(signature_of(Derived))
    '(name: str, *, size: int = 1)'
    """
    own = inspect.signature(cls)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.parameters.values()):
        return own
    base = next((base for base in cls.__mro__[1:-1] if "__init__" in vars(base)), None)
    if base is None:
        return own
    named = {name: p for name, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}
    rest = [p.replace(kind=p.KEYWORD_ONLY) for name, p in signature_of(base).parameters.items() if name not in named]
    return own.replace(parameters=[*named.values(), *rest])
