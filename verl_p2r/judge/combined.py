# SPDX-License-Identifier: Apache-2.0
"""Several judges behind the one protocol [ours]: every member judges each observation, and a rule decides.

    judge:
      name: all
      kwargs:
        members:
          text: {name: openai, kwargs: {model: …, base_urls: […]}}
          video: {name: visual, kwargs: {model: …, base_urls: […]}}

A member that reaches no verdict, or raises, counts as unknown and never as a No. If the others decide whatever it would
have said, the verdict is theirs; otherwise there is no verdict. Metrics show each member's verdicts and how often all
agree.
"""

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_p2r.judge.protocol import Judge, JudgeRequest, Verdict
from verl_p2r.judge.registry import get_judge
from verl_p2r.settings import merge

logger = logging.getLogger(__name__)

_LABEL = re.compile(r"[a-z][a-z0-9_]*")
_AGGREGATED = ("max", "min", "sum", "total")  # verl aggregates a metric by such a part of its name
_WORDS = {True: "Yes", False: "No", None: "no verdict"}


@dataclass(frozen=True)
class MemberSettings:
    """One member of a combined judge.

    Args:
        name: A registered judge, or `module:Class`.
        kwargs: The judge's own options.
        weight: Its weight; only `weighted` uses it.

    Raises:
        ValueError: The name is empty, or the weight is not positive.
    """

    name: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name is empty: name a judge, for example openai")
        if not self.weight > 0:
            raise ValueError(f"weight is {self.weight}: give a positive number, or remove the member")


class CombinedJudge(ABC):
    """Asks several judges at once; a subclass decides.

    Args:
        members: Label → `name` and `kwargs` of a judge, as in `MemberSettings`. The labels appear in metrics.

    Raises:
        ValueError: There are fewer than two members, or a label or a member's settings cannot be used.
    """

    def __init__(self, members: Mapping[str, Mapping[str, Any]]) -> None:
        self.members: dict[str, Judge] = {}
        self._weights: dict[str, float] = {}
        for label, mapping in (members if isinstance(members, Mapping) else {}).items():
            where = f"algorithm.p2r.judge.kwargs.members.{label}"
            _check_label(label, where)
            settings = _settings(mapping, where)
            try:
                self.members[label] = get_judge(settings.name, where, **settings.kwargs)
            except ValueError as error:
                raise ValueError(f"member {label}: {error}") from error
            self._weights[label] = settings.weight
        if len(self.members) < 2:
            raise ValueError(
                f"algorithm.p2r.judge.kwargs.members lists {', '.join(self.members) or 'no judge'}: a combined judge "
                "needs two or more, such as members={text: {name: openai, kwargs: {…}}, video: {name: visual, …}}"
            )
        self.gives_probabilities = all(getattr(judge, "gives_probabilities", False) for judge in self.members.values())

    @property
    def labels(self) -> tuple[str, ...]:
        """The members' labels, for metrics."""
        return tuple(self.members)

    @abstractmethod
    def decide(self, verdicts: Mapping[str, Verdict]) -> tuple[bool | None, float | None]:
        """Combine the members' verdicts.

        Args:
            verdicts: Label → verdict.

        Returns:
            The verdict's value, and P(Yes) if the members' verdicts determine it.
        """

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Judge one observation."""
        return await self._ask(request, "judge")

    async def ask_anew(self, request: JudgeRequest) -> Verdict:
        """Judge one observation without the members' caches."""
        return await self._ask(request, "ask_anew")

    async def reach(self) -> None:
        """Check that every member that has a server reaches it."""
        await asyncio.gather(*(judge.reach() for judge in self.members.values() if hasattr(judge, "reach")))

    async def aclose(self) -> None:
        """Close the members' connections."""
        await asyncio.gather(*(judge.aclose() for judge in self.members.values() if hasattr(judge, "aclose")))

    async def _ask(self, request: JudgeRequest, method: str) -> Verdict:
        given = await asyncio.gather(*(self._member(label, request, method) for label in self.members))
        verdicts = dict(zip(self.members, given, strict=True))
        value, probability = self.decide(verdicts)
        unknown = [verdict for verdict in given if value is None and verdict.value is None]
        return Verdict(
            value,
            "; ".join(f"{label}: {_WORDS[verdict.value]}, {verdict.reason}" for label, verdict in verdicts.items()),
            "cache" if all(verdict.source == "cache" for verdict in given) else "judge",
            retries=sum(verdict.retries for verdict in given),
            prompt_tokens=sum(verdict.prompt_tokens for verdict in given),
            completion_tokens=sum(verdict.completion_tokens for verdict in given),
            status=unknown[0].status if len({verdict.status for verdict in unknown}) == 1 else None,
            useless=bool(unknown) and all(verdict.useless for verdict in unknown),
            seconds=max((verdict.seconds for verdict in given), default=0.0),
            probability=None if value is None else probability,
            members=tuple((label, verdict.value) for label, verdict in verdicts.items()),
        )

    async def _member(self, label: str, request: JudgeRequest, method: str) -> Verdict:
        judge = self.members[label]
        try:
            return await getattr(judge, method, judge.judge)(request)
        except Exception as error:  # the other members may decide without this one
            logger.warning("the member %s gave no verdict on %s: %s", label, request.row or "an observation", error)
            return Verdict(None, f"{type(error).__name__}: {error}")


def probability_of(verdict: Verdict) -> float | None:
    """Return a member's P(Yes): its own, else 1 or 0; None without a verdict.

    >>> probability_of(Verdict(True, "", probability=0.7)), probability_of(Verdict(False, ""))
    (0.7, 0.0)
    """
    return verdict.accuracy(soft=True)


def known(probabilities: Sequence[float | None]) -> list[float] | None:
    """Return the probabilities if every member gave one, otherwise None."""
    given = [p for p in probabilities if p is not None]
    return given if len(given) == len(probabilities) else None


def named_judges(name: str, kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the names and options of a judge and of the judges that it asks, at any depth.

    Args:
        name: The value of `algorithm.p2r.judge.name`.
        kwargs: The value of `algorithm.p2r.judge.kwargs`.

    >>> members = {"a": {"name": "facts"}, "b": {"name": "openai", "kwargs": {"model": "m"}}}
    >>> list(named_judges("all", {"members": members}))[1:]
    [('facts', {}), ('openai', {'model': 'm'})]
    """
    yield name, kwargs
    members = kwargs.get("members")
    asked = list(members.values()) if isinstance(members, Mapping) else []
    for member in [*asked, kwargs.get("compare_with")]:
        if isinstance(member, Mapping):
            yield from named_judges(str(member.get("name")), member.get("kwargs") or {})


def _settings(mapping: Any, where: str) -> MemberSettings:
    if not isinstance(mapping, Mapping) or not isinstance(mapping.get("name"), str):
        raise ValueError(f"{where} is {mapping!r}: give {{name: NAME, kwargs: {{…}}}}")
    return merge(MemberSettings(name=mapping["name"] or "?"), mapping, where)


def _check_label(label: Any, where: str) -> None:
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise ValueError(f"{where}: name members in lower case letters, digits and underscores, such as text")
    if part := next((part for part in _AGGREGATED if part in label), ""):
        raise ValueError(f"{where}: the name holds {part!r}, by which verl would aggregate its metrics: rename it")
