# SPDX-License-Identifier: Apache-2.0
"""The settings of PA-GRPO: the YAML node `algorithm.p2r` as frozen dataclasses, checked when they are built.

Defaults are the paper's. Each ablation of its table 2 is one switch:

    no R_P (GRPO on the reasoning reward)   perception.enabled=false
    no R_R                                  reasoning.enabled=false
    no R_len                                length_reward=false
    no separation                           separate=false
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def _not_negative(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}: give a finite number that is not negative")


@dataclass(frozen=True)
class LengthBand:
    """The band of segment lengths that earns the length reward, both ends included.

    Args:
        minimum, maximum: lengths in tokens of visible text inside the segment's blocks, tags not counted [ours].
        reward: R_len inside the band.
    """

    minimum: int
    maximum: int
    reward: float = 0.2

    def __post_init__(self) -> None:
        _not_negative(self, "minimum", "reward")
        if self.maximum < self.minimum:
            raise ValueError(
                f"maximum is {self.maximum}, below minimum {self.minimum}, so no length could earn the reward: "
                "swap them, or set length_reward: false to switch the length reward off"
            )


@dataclass(frozen=True)
class ProcessSettings:
    """The reward of one process: R = accuracy_weight·R_acc + format_weight·R_form + R_len (arXiv 2511.11113, Eq. 5).

    Args:
        enabled: False takes this process's reward out altogether.
        accuracy_weight, format_weight: 1 in the paper.
        length: the band of the length reward.
    """

    length: LengthBand
    enabled: bool = True
    accuracy_weight: float = 1.0
    format_weight: float = 1.0

    def __post_init__(self) -> None:
        _not_negative(self, "accuracy_weight", "format_weight")
        if self.enabled and self.accuracy_weight == self.format_weight == 0:
            raise ValueError(
                "accuracy_weight and format_weight are both 0, so this process would learn nothing from its content: "
                "give one a positive weight, or set enabled: false"
            )


@dataclass(frozen=True)
class JudgeGuards:
    """Rules that give a No before any judge is asked [ours]; off in the paper's setting.

    Args:
        answer_only: an observation that merely states an answer is no evidence for it.
        copied_question: nor is a near-verbatim copy of the question.
    """

    answer_only: bool = False
    copied_question: bool = False


@dataclass(frozen=True)
class JudgeSettings:
    """Who decides whether an observation suffices to deduce the answer.

    Args:
        name: a registered judge, or `module:Class`.
        max_no_verdict_share: the share of a batch's rows, in [0, 1], that may stay without a verdict.
        health_check: ask the judge two questions with known verdicts before the run begins.
        guards: rules that come before the judge.
        kwargs: the judge's own options.
    """

    name: str = "facts"
    max_no_verdict_share: float = 0.05
    health_check: bool = True
    guards: JudgeGuards = JudgeGuards()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("name is empty: name a judge, for example facts")
        if not 0 <= self.max_no_verdict_share <= 1:
            raise ValueError(
                f"max_no_verdict_share is {self.max_no_verdict_share}: give a share between 0 and 1, for example 0.05"
            )


@dataclass(frozen=True)
class P2RSettings:
    """Everything a user can set about the two rewards and their advantages.

    Args:
        strict: score answers by Video-R1's comparisons, to the letter.
        length_reward: False is the "no R_len" ablation.
        separate: give each segment its own advantage. None: as soon as both rewards are on; False is the "no
            separation" ablation, R_P + R_R over all tokens.
        segment_weighting: `token`, or `segment` to let both segments of a response weigh the same in the loss.
        perception, reasoning: the two rewards.
        judge: who gives the perception verdict.

    Raises:
        ValueError: a value out of its range, both rewards off, or `separate: true` with one of them off.

    >>> P2RSettings().separated
    True
    >>> P2RSettings.from_mapping({"perception": {"enabled": False}}).separated
    False
    """

    strict: bool = False
    length_reward: bool = True
    separate: bool | None = None
    segment_weighting: Literal["token", "segment"] = "token"
    perception: ProcessSettings = ProcessSettings(LengthBand(128, 320))
    reasoning: ProcessSettings = ProcessSettings(LengthBand(320, 512))
    judge: JudgeSettings = field(default_factory=JudgeSettings)

    def __post_init__(self) -> None:
        if not self.perception.enabled and not self.reasoning.enabled:
            raise ValueError(
                "perception.enabled and reasoning.enabled are both false, so no token would get a reward: "
                "switch at least one on"
            )
        for process in ("perception", "reasoning"):
            if self.separate and not getattr(self, process).enabled:
                raise ValueError(
                    f"separate is true but {process}.enabled is false, so there is one reward and nothing to separate: "
                    f"set separate: null, or {process}.enabled: true"
                )

    @property
    def separated(self) -> bool:
        """Whether each segment gets its own advantage: `separate`, with null resolved."""
        both = self.perception.enabled and self.reasoning.enabled
        return both if self.separate is None else self.separate

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], where: str = "algorithm.p2r") -> "P2RSettings":
        """Read the settings from a (possibly partial) mapping; what it leaves out keeps its default.

        Args:
            mapping: the configuration node, plain or OmegaConf.
            where: the node's dotted path, for error messages.

        Raises:
            ValueError: an unknown key, a value of the wrong type or out of range, or settings that contradict each
                other; the message names the dotted path and says what to write.

        >>> P2RSettings.from_mapping({"strickt": True})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: algorithm.p2r.strickt does not exist: did you mean strict? Known here: strict, length_reward, ...
        """
        return merge(cls(), mapping, where)


def merge(default: T, mapping: Any, where: str) -> T:
    """Replace a dataclass's fields by a mapping's values, recursively, checking names and types."""
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where} is {mapping!r}: give a mapping of settings, or leave it out for the defaults")
    names = [f.name for f in dataclasses.fields(default)]  # type: ignore[arg-type]
    hints = typing.get_type_hints(type(default))
    changes = {}
    for key, value in mapping.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]}? " if near else "remove it. "
            raise ValueError(f"{where}.{key} does not exist: {hint}Known here: {', '.join(names)}")
        current = getattr(default, key)
        if dataclasses.is_dataclass(current):
            changes[key] = merge(current, value, f"{where}.{key}")
        else:
            changes[key] = _typed(value, hints[key], f"{where}.{key}")
    try:
        return dataclasses.replace(default, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def _typed(value: Any, kind: Any, where: str) -> Any:
    """Check one value against its annotation; an int may stand for a float, nothing else is converted."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{where} is {value!r}: use one of {', '.join(choices)}")
        return value
    if kind == Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}: give a mapping, for example {{}}")
        return _unwrap(value)
    if kind == tuple[str, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{where} is {value!r}: give a list of texts, such as [{value}]")
        return tuple(value)
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = typing.get_args(kind)[0]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is kind and (kind is not float or math.isfinite(value)):
        return value
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}
    raise ValueError(f"{where} is {value!r}: give {names[kind]}{'' if kind is str else ', without quotes'}")


def _unwrap(value: Any) -> Any:
    """Copy nested mappings and lists (OmegaConf's too) into plain dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): _unwrap(item) for key, item in value.items()}
    if isinstance(value, typing.Sequence) and not isinstance(value, str | bytes):
        return [_unwrap(item) for item in value]
    return value
