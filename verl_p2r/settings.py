# SPDX-License-Identifier: Apache-2.0
"""The settings of PA-GRPO: the YAML node `algorithm.p2r` as frozen dataclasses that validate themselves.

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
        minimum: Shortest length, in tokens of visible text inside the segment's blocks, without tags [ours].
        maximum: Longest length, in the same tokens.
        reward: R_len inside the band.

    Raises:
        ValueError: A number is negative or not finite, or the band is empty.
    """

    minimum: int
    maximum: int
    reward: float = 0.2

    def __post_init__(self) -> None:
        _not_negative(self, "minimum", "reward")
        if self.maximum < self.minimum:
            raise ValueError(
                f"maximum is {self.maximum}, below minimum {self.minimum}, so no length could earn the reward: "
                "swap them, or set length_reward: false to turn the length reward off"
            )


@dataclass(frozen=True)
class ProcessSettings:
    """The reward of one process: R = accuracy_weight·R_acc + format_weight·R_form + R_len (arXiv 2511.11113, Eq. 5).

    Args:
        length: The band of the length reward.
        enabled: False removes this process's reward.
        accuracy_weight: Weight of R_acc; 1 in the paper.
        format_weight: Weight of R_form; 1 in the paper.

    Raises:
        ValueError: A weight is negative or not finite, or both are 0.
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
    """Rules that give a No before the judge is asked [ours]; off in the paper's setting.

    Args:
        answer_only: Reject an observation that merely states an answer.
        copied_question: Reject an observation that is a near-verbatim copy of the question.
    """

    answer_only: bool = False
    copied_question: bool = False


@dataclass(frozen=True)
class SecondAnswerSettings:
    """How the policy answers from its own observation without the media, for the judge `self` [ours].

    Args:
        max_tokens: Most tokens of the second answer.
        think: Whether it may think before it answers, which costs about as much as the response's own thinking.

    Raises:
        ValueError: `max_tokens` is not positive.
    """

    max_tokens: int = 64
    think: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}: give a whole number above 0")


@dataclass(frozen=True)
class JudgeSettings:
    """The judge, which decides whether an observation suffices to deduce the answer.

    Args:
        name: A registered judge, or `module:Class`.
        max_no_verdict_share: The largest share of a batch's rows without a verdict, in [0, 1].
        health_check: Whether to ask the judge two questions with known verdicts before the run.
        soft: Whether R_acc,P is the judge's P(Yes) instead of 0 or 1 [ours].
        guards: Rules applied before the judge.
        second_answer: The answer that the judge `self` reads; asked for by the agent loop `p2r_self_judge`.
        kwargs: The judge's own options.

    Raises:
        ValueError: The name is empty, or the share is out of range.
    """

    name: str = "facts"
    max_no_verdict_share: float = 0.05
    health_check: bool = True
    soft: bool = False
    guards: JudgeGuards = JudgeGuards()
    second_answer: SecondAnswerSettings = SecondAnswerSettings()
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
    """All settings of the two rewards and their advantages.

    Args:
        strict: Whether to score answers exactly by Video-R1's comparisons.
        length_reward: False is the "no R_len" ablation.
        separate: Whether each segment gets its own advantage. None: if both rewards are on; False is the "no
            separation" ablation, R_P + R_R over all tokens.
        segment_weighting: `token`, or `segment` to give both segments of a response equal weight in the loss.
        cross_credit: λ: perception tokens get A_P + λ A_R; 0 is the paper's [ours].
        perception: The perception reward.
        reasoning: The reasoning reward.
        judge: The judge of the perception reward.

    Raises:
        ValueError: Both rewards are off, `separate` is true although one of them is off, or `cross_credit` is negative
            or set although the advantages are not separated.

    >>> P2RSettings().separated
    True
    >>> P2RSettings.from_mapping({"perception": {"enabled": False}}).separated
    False
    """

    strict: bool = False
    length_reward: bool = True
    separate: bool | None = None
    segment_weighting: Literal["token", "segment"] = "token"
    cross_credit: float = 0.0
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

        _not_negative(self, "cross_credit")
        if self.cross_credit and not self.separated:
            raise ValueError(
                f"cross_credit is {self.cross_credit}, but the advantages are not separated (separate is false, or one "
                "reward is off), so every token already has the only advantage there is: set cross_credit: 0, or "
                "separate: true with both rewards on"
            )

    @property
    def separated(self) -> bool:
        """Whether each segment gets its own advantage: `separate`, with null resolved."""
        both = self.perception.enabled and self.reasoning.enabled
        return both if self.separate is None else self.separate

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], where: str = "algorithm.p2r") -> "P2RSettings":
        """Read the settings from a mapping; missing keys keep their defaults.

        Args:
            mapping: The configuration node, plain or OmegaConf.
            where: The node's dotted path, for error messages.

        Raises:
            ValueError: A key is unknown, a value has the wrong type or is out of range, or settings contradict each
                other; the message names the dotted path and says what to write.

        >>> P2RSettings.from_mapping({"strickt": True})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: algorithm.p2r.strickt does not exist: did you mean strict? Known here: strict, length_reward, ...
        """
        return merge(cls(), mapping, where)


def merge(default: T, mapping: Any, where: str) -> T:
    """Replace a dataclass's fields with a mapping's values, recursively, checking names and types.

    Args:
        default: The dataclass with its defaults.
        mapping: Field name → value, or a mapping for a nested dataclass.
        where: The node's dotted path, for error messages.

    Raises:
        ValueError: See `P2RSettings.from_mapping`.
    """
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
    """Check one value against its annotation; only an int is converted, to a float."""
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
    """Copy nested mappings and lists, also OmegaConf's, into plain dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): _unwrap(item) for key, item in value.items()}
    if isinstance(value, typing.Sequence) and not isinstance(value, str | bytes):
        return [_unwrap(item) for item in value]
    return value
