# SPDX-License-Identifier: Apache-2.0
"""The response template: three tagged blocks, two regions, and the one definition of where perception ends.

    <observation> … </observation> <think> … </think> <answer> … </answer>
    └── perception region P ──────┘└── reasoning region R ──────────────┘

Everything here runs in time linear in the text, whatever the text: a policy in training writes anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TAG = r"</?(?:observation|think|answer)>"
# Unrolled, so that each `<` is looked at once; a lazy `.*?` would rescan the text for every closing tag.
_BODY = rf"[^<]*(?:(?!{_TAG})<[^<]*)*"


def _block(tag: str) -> str:
    return rf"<{tag}>(?!\s*</{tag}>){_BODY}</{tag}>"


_PERCEPTION = re.compile(rf"\s*{_block('observation')}")
_REASONING = re.compile(rf"\s*{_block('think')}\s*{_block('answer')}\s*")


@dataclass(frozen=True)
class ParsedResponse:
    """A response read by the template.

    Attributes:
        observation: Text of the first complete block in P's region, white space stripped; None without one.
        think: The same for `<think>`, in R's region.
        answer: The same for `<answer>`, in R's region, whether or not the rest of R is well formed.
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

    P ends with the first `</observation>` that follows an `<observation>`; without one, where the first `<think>`
    begins, so that the blame reaches the tokens that earned it; without either, P is empty `[ours]`.

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
    _, end = _first_block(text, "observation")
    return end if end >= 0 else max(text.find("<think>"), 0)


def parse_response(text: str) -> ParsedResponse:
    """Read a response by the template: its three texts, and whether each process kept to its form.

    R_form,k ∈ {0, 1} of arXiv 2511.11113, Eq. 5, is `perception_well_formed` for P and `reasoning_well_formed` for R.

    Each process is read in its own region only (see `perception_end`). Tags are lower case; none of the three, opening
    or closing, may occur inside a block; a block of white space is empty, hence not well formed `[ours]`. A text is
    given even when the form is off, from the first opening tag to the closing tag that follows it `[ours]`.

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
    perception, reasoning = text[:end], text[end:]
    return ParsedResponse(
        observation=_first_block(perception, "observation")[0],
        think=_first_block(reasoning, "think")[0],
        answer=_first_block(reasoning, "answer")[0],
        perception_well_formed=_PERCEPTION.fullmatch(perception) is not None,
        reasoning_well_formed=_REASONING.fullmatch(reasoning) is not None,
    )


def _first_block(text: str, tag: str) -> tuple[str | None, int]:
    """Give the stripped content of the first complete block and the index just past it, or (None, -1)."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = text.find(opening)
    stop = text.find(closing, start + len(opening)) if start >= 0 else -1
    if stop < 0:
        return None, -1
    return text[start + len(opening) : stop].strip(), stop + len(closing)
