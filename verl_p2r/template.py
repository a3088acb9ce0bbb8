# SPDX-License-Identifier: Apache-2.0
"""The response template: three tagged blocks, two regions, and the definition of where perception ends.

    <observation> … </observation> <think> … </think> <answer> … </answer>
    └── perception region P ──────┘└── reasoning region R ──────────────┘

Everything here takes time linear in the length of the text, because a policy in training may write anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from verl_p2r.visible import INVISIBLE

_TAG = r"</?(?:observation|think|answer)>"
# Unrolled, so that each `<` is examined once; a lazy `.*?` would rescan the text for every closing tag.
_BODY = rf"[^<]*(?:(?!{_TAG})<[^<]*)*"


def _block(tag: str) -> str:
    return rf"<{tag}>(?![\s{INVISIBLE}]*</{tag}>){_BODY}</{tag}>"


_PERCEPTION = re.compile(rf"\s*{_block('observation')}")
_REASONING = re.compile(rf"\s*{_block('think')}\s*{_block('answer')}\s*")


@dataclass(frozen=True)
class ParsedResponse:
    """A response parsed by the template.

    Attributes:
        observation: The stripped text of the first complete block in P's region; None without one.
        think: The same for `<think>` in R's region.
        answer: The same for `<answer>` in R's region, even if the rest of R is malformed.
        perception_well_formed: P's region is white space and one non-empty observation.
        reasoning_well_formed: R's region is white space, one non-empty think, then one non-empty answer.
    """

    observation: str | None
    think: str | None
    answer: str | None
    perception_well_formed: bool
    reasoning_well_formed: bool


def perception_end(text: str) -> int:
    """Find the character index at which the perception region P of a response ends.

    P ends with the first `</observation>` that follows an `<observation>`. Without one, it ends where the first
    `<think>` begins, so that the tokens that broke the format are penalised. Without either, P is empty `[ours]`.

    Args:
        text: The decoded response, special tokens skipped.

    Returns:
        The index in characters: P is `text[:end]` and R is `text[end:]`.

    >>> perception_end("<observation>a</observation><think>")
    28
    >>> perception_end("no block <think>")
    9
    >>> perception_end("neither")
    0
    """
    block = _first_block(text, "observation")
    return block[1] + len("</observation>") if block else max(text.find("<think>"), 0)


def block_spans(text: str) -> dict[str, tuple[int, int]]:
    """Find the contents of a response's three blocks, each in its own region.

    Args:
        text: The decoded response, special tokens skipped.

    Returns:
        Tag → (first index of the content, index after it), in characters of `text`, for each block for which
        `parse_response` returns a text, in the order of the template.

    >>> text = "<observation>a</observation><answer> B </answer>"
    >>> {tag: text[start:stop] for tag, (start, stop) in block_spans(text).items()}
    {'observation': 'a', 'answer': ' B '}
    """
    end = perception_end(text)
    spans = {
        "observation": _first_block(text, "observation", 0, end),
        "think": _first_block(text, "think", end),
        "answer": _first_block(text, "answer", end),
    }
    return {tag: span for tag, span in spans.items() if span is not None}


def parse_response(text: str) -> ParsedResponse:
    """Parse a response by the template: its three texts, and whether each process is well formed.

    R_form,k ∈ {0, 1} of arXiv 2511.11113, Eq. 5, is `perception_well_formed` for P and `reasoning_well_formed` for R.

    Each process is read only in its own region (see `perception_end`). Tags are lower case, and none of them, opening
    or closing, may occur inside a block. A block without visible text (only white space, zero-width characters or
    fillers) is empty and therefore malformed `[ours]`. A malformed process still has texts: each reaches from the first
    opening tag to the next closing tag `[ours]`.

    Args:
        text: The decoded response, special tokens skipped.

    Returns:
        The parsed response; no input raises.

    >>> parsed = parse_response("<observation>a red ball</observation><think>red</think><answer> B </answer>")
    >>> parsed.observation, parsed.think, parsed.answer
    ('a red ball', 'red', 'B')
    >>> parsed.perception_well_formed, parsed.reasoning_well_formed
    (True, True)
    >>> parse_response("A ball. <answer>B</answer>")
    ParsedResponse(observation=None, think=None, answer='B', perception_well_formed=False, reasoning_well_formed=False)
    """
    end = perception_end(text)
    texts = {tag: text[start:stop].strip() for tag, (start, stop) in block_spans(text).items()}
    return ParsedResponse(
        observation=texts.get("observation"),
        think=texts.get("think"),
        answer=texts.get("answer"),
        perception_well_formed=_PERCEPTION.fullmatch(text, 0, end) is not None,
        reasoning_well_formed=_REASONING.fullmatch(text, end) is not None,
    )


def inside(text: str, tag: str) -> str:
    """Return the content of the first complete block of a tag, or the whole text without one, white space stripped.

    Args:
        text: Any text.
        tag: `observation`, `think` or `answer`.

    >>> inside("so <think> it is </think> and", "think"), inside(" it is ", "think")
    ('it is', 'it is')
    """
    block = _first_block(text, tag)
    return (text[slice(*block)] if block else text).strip()


def _first_block(text: str, tag: str, begin: int = 0, end: int | None = None) -> tuple[int, int] | None:
    """Find the first complete block between two indices; return the first index of its content and the one after it."""
    opening = text.find(f"<{tag}>", begin, end)
    start = opening + len(tag) + 2
    stop = text.find(f"</{tag}>", start, end) if opening >= 0 else -1
    return (start, stop) if stop >= 0 else None
