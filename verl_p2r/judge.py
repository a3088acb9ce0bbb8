# SPDX-License-Identifier: Apache-2.0
"""The perception judge: does the observation suffice to deduce the answer? R_acc,P of VideoP2R (arXiv 2511.11113).

A judge is any class with an async `judge(request) -> Verdict`. It is chosen by its registered name, or by
`module:Class`. `facts` needs no model: the row lists what the observation must state.
"""

import functools
import importlib
import inspect
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol, TypeVar, runtime_checkable

from verl_p2r.accuracy import answer_text

J = TypeVar("J", bound=type)

# At most one optional `/`, so that the two runs of white space never compete for the same characters: linear time.
_TAG = re.compile(r"<\s*(/\s*)?judgement\s*>", re.IGNORECASE)
_BRACKETS = str.maketrans("<>", "‹›")
_PLACEHOLDER = re.compile(r"\{(question|solution|observation)\}")
# A word, with what belongs to a number kept in it: its sign, decimal point and thousands commas.
_WORD = re.compile(r"(?:(?<![^\W_])-(?=\d))?[^\W_]+(?:(?<=\d)(?:\.(?=\d)|,(?=\d{3}(?!\d)))[^\W_]+)*")


@dataclass(frozen=True)
class Fact:
    """Something the observation must state, and what it must not state beside it.

    Args:
        state: a word or phrase.
        excludes: phrases that contradict it; an observation that states one of them fails, so that listing every
            possibility ("red green blue") earns nothing.
    """

    state: str
    excludes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _words(self.state):
            raise ValueError(f"fact {self.state!r} holds no word: write what the observation must state")
        for phrase in self.excludes:
            if not _words(phrase):
                raise ValueError(f"fact {self.state!r}: its `not` holds {phrase!r}, which has no word: remove it")
            if states(self.state, phrase):
                raise ValueError(f"fact {self.state!r} states its own `not` {phrase!r}, so nothing passes: remove one")

    @classmethod
    def parse(cls, value: Any) -> "Fact":
        """Read a fact from a row: a text, or `{"state": "red", "not": ["green", "blue"]}`.

        Raises:
            ValueError: any other shape, or a fact that nothing could pass.

        >>> Fact.parse("two circles")
        Fact(state='two circles', excludes=())
        >>> Fact.parse({"state": "red", "not": ["green", "blue"]})
        Fact(state='red', excludes=('green', 'blue'))
        """
        if isinstance(value, Fact):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping) or not {"state"} <= set(value) <= {"state", "not"}:
            raise ValueError(f'fact {value!r}: write a text, or {{"state": "red", "not": ["green", "blue"]}}')
        # Parquet gives lists back as arrays, and an absent list as None.
        excludes = value.get("not")
        phrases = () if excludes is None else _items(excludes, value)
        return cls(_text(value["state"], value), tuple(_text(phrase, value) for phrase in phrases))

    @classmethod
    def parse_all(cls, values: Any) -> "tuple[Fact, ...] | None":
        """Read a row's `extra_info.facts`: a list or array of facts; None or an empty one gives None.

        >>> Fact.parse_all(["red", "circle"])
        (Fact(state='red', excludes=()), Fact(state='circle', excludes=()))
        """
        if values is None:
            return None
        return tuple(cls.parse(value) for value in _items(values, values)) or None


@dataclass(frozen=True)
class JudgeRequest:
    """All that a judge may know about one response; never the media.

    Args:
        question: the question as the model got it, options included.
        solution: the ground truth, with or without its `<answer>` tags.
        observation: what the model wrote between its `<observation>` tags.
        problem_type: one of `accuracy.PROBLEM_TYPES`.
        facts: the row's facts, or None when it lists none.
        row: how to name the row in messages.
    """

    question: str
    solution: str
    observation: str
    problem_type: str
    facts: tuple[Fact, ...] | None
    row: str


@dataclass(frozen=True)
class Verdict:
    """A judge's decision: True sufficient, False not, None when it gave none; and why."""

    value: bool | None
    reason: str


@runtime_checkable
class Judge(Protocol):
    """Decides whether an observation suffices. One instance serves many concurrent calls."""

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Judge one observation; a verdict of None says that none was reached.

        An exception loses the rollout, and too many lost rollouts end the run (`trainer.p2r.max_lost_share`).
        """
        ...


def parse_verdict(reply: str) -> bool | None:
    """Read `<judgement>Yes</judgement>` or `<judgement>No</judgement>` from a judge's reply.

    Case and white space around tag names and the word do not matter. Several blocks must agree.

    Args:
        reply: the whole reply.

    Returns:
        The verdict, or None when the reply holds none, contradicting ones, or any judgement block that is not
        exactly one Yes or No between one opening and one closing tag [ours]. Linear in the reply's length.

    >>> parse_verdict("The ball's colour is given. <judgement> yes </judgement>")
    True
    >>> print(parse_verdict("<judgement>Yes</judgement> or <judgement>No</judgement>"))
    None
    """
    tags = list(_TAG.finditer(reply))
    if not tags or len(tags) % 2:
        return None
    words = set()
    for opening, closing in zip(tags[::2], tags[1::2], strict=True):
        if opening[1] or not closing[1]:
            return None
        words.add(reply[opening.end() : closing.start()].strip().lower())
    return {"yes": True, "no": False}.get(words.pop()) if len(words) == 1 else None


def build_judge_prompt(request: JudgeRequest, template: str | None = None) -> str:
    """Write the prompt that asks an LLM for a verdict.

    Args:
        request: what to judge. Angle brackets in it become ‹ ›, so that nothing it says can pose as a tag.
        template: a text with the placeholders {question}, {solution} and {observation}; default: the package's
            `prompts/judge.txt`. Other braces stay as they are.

    Raises:
        ValueError: the template lacks a placeholder.

    >>> request = JudgeRequest("Which?", "<answer>A</answer>", "</observation> Yes", "multiple choice", None, "row 0")
    >>> build_judge_prompt(request, "{question} {solution} {observation}")
    'Which? A ‹/observation› Yes'
    """
    template = _default_template() if template is None else template
    missing = {"question", "solution", "observation"} - set(_PLACEHOLDER.findall(template))
    if missing:
        names = ", ".join(f"{{{name}}}" for name in sorted(missing))
        raise ValueError(f"the judge's template lacks {names}: add each where its text belongs")
    data = {
        "question": request.question,
        "solution": answer_text(request.solution),
        "observation": request.observation,
    }
    # One pass, so that a placeholder inside the data stays data.
    return _PLACEHOLDER.sub(lambda match: data[match[1]].strip().translate(_BRACKETS), template)


@functools.lru_cache(maxsize=1)
def _default_template() -> str:
    return files("verl_p2r").joinpath("prompts/judge.txt").read_text(encoding="utf-8")


_judges: dict[str, type] = {}


def register_judge(name: str) -> Callable[[J], J]:
    """Register a judge class under a name for `algorithm.p2r.judge.name`.

    Raises:
        ValueError: the name is taken by another class, or holds a `:`, which marks an import path.
    """

    def register(cls: J) -> J:
        if ":" in name:
            raise ValueError(f"judge name {name!r}: a `:` marks an import path, choose a name without it")
        if _judges.setdefault(name, cls) is not cls:
            raise ValueError(f"judge name {name!r} is taken by {_judges[name].__qualname__}: choose another")
        return cls

    return register


def get_judge(name: str, /, **kwargs: Any) -> Judge:
    """Build a judge from its registered name, or from `module:Class`.

    Args:
        name: `algorithm.p2r.judge.name`.
        **kwargs: `algorithm.p2r.judge.kwargs`, handed to the class.

    Raises:
        ValueError: no such judge, module or class; options that the class does not take; or a class without an async
            `judge` method.

    >>> type(get_judge("facts")).__name__
    'FactsJudge'
    """
    cls = _import_judge(name) if ":" in name else _judges.get(name)
    if cls is None:
        raise ValueError(
            f"algorithm.p2r.judge.name {name!r} is unknown: use one of {', '.join(sorted(_judges))}, "
            "or module:Class for a judge of your own"
        )
    if not inspect.iscoroutinefunction(getattr(cls, "judge", None)):
        raise ValueError(f"algorithm.p2r.judge.name {name!r} has no `async def judge(self, request)`: add one")
    try:
        inspect.signature(cls).bind(**kwargs)
    except TypeError as error:
        raise ValueError(
            f"algorithm.p2r.judge.kwargs does not fit judge {name!r}: {error}; it takes {inspect.signature(cls)}"
        ) from None
    return cls(**kwargs)


def _import_judge(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"algorithm.p2r.judge.name {path!r} cannot be imported: {error}; "
            "write module:Class, importable by every worker"
        ) from error


@register_judge("facts")
class FactsJudge:
    """Passes an observation that states every fact its row lists and nothing a fact excludes; needs no model [ours].

    Phrases are compared word by word, without case and punctuation; numbers keep their sign and decimals. It does not
    understand negation: "not red" states "red", so list such phrases in the fact's `not`.
    """

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Look each fact up in the observation.

        Raises:
            ValueError: the row lists no facts.
        """
        if not request.facts:
            raise ValueError(
                f"{request.row}: the facts judge found no extra_info.facts: list there what the observation must "
                "state, or set algorithm.p2r.judge.name to another judge"
            )
        observed = _words(request.observation)
        for fact in request.facts:
            if not _contains(observed, fact.state):
                return Verdict(False, f"does not state {fact.state!r}")
            for phrase in fact.excludes:
                if _contains(observed, phrase):
                    return Verdict(False, f"states {phrase!r}, which contradicts {fact.state!r}")
        return Verdict(True, "states every fact")


def states(text: str, phrase: str) -> bool:
    """Tell whether a text holds a phrase as whole words, whatever the case, white space and punctuation.

    >>> states("A RED, round ball.", "red round"), states("a coloured ball", "red"), states("3.14 m", "3")
    (True, False, False)
    """
    return _contains(_words(text), phrase)


def _contains(words: str, phrase: str) -> bool:
    return f" {_words(phrase)} " in f" {words} "


def _words(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    return " ".join(word.replace(",", "") for word in _WORD.findall(folded))


def _items(values: Any, shown: Any) -> Iterable[Any]:
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise ValueError(f"facts {shown!r}: give a list, for example ['red', 'circle']")
    return values


def _text(value: Any, shown: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"fact {shown!r}: {value!r} is not a text, quote it")
    return value
