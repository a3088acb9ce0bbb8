# SPDX-License-Identifier: Apache-2.0
"""What a report shows of one reply: the question, frames, the tokens of both segments, and the score.

Cards come from a run's replies (`replies_of`) or from the rollouts of a training (`rollouts.Rollouts`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from data_tools.evaluate.results import Run
from data_tools.evaluate.verdicts import Verdicts
from data_tools.look.cards import Option
from data_tools.look.pictures import Pictures, pictures_of
from verl_p2r.accuracy import answer_text
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Medium
from verl_p2r.evaluation import Protocol
from verl_p2r.evaluation.items import CUT, score_item
from verl_p2r.evaluation.mismatch import option_letter
from verl_p2r.media.rules import EVALUATION
from verl_p2r.template import parse_response, perception_end

T = TypeVar("T")

SHOWN = 12_000  # characters of a reply
_WORDS = re.compile(r"\s*\S+|\s+$")
OUTCOMES = ("right", "partly right", "wrong", "lost")


@dataclass(frozen=True)
class Token:
    """A token or word of a reply; `tone` is -4 to 4 if it has an advantage, `title` describes it."""

    text: str
    tone: int = 0
    title: str = ""


@dataclass(frozen=True)
class Card:
    """One reply as the page shows it.

    Args:
        title: id of the item.
        run, group, kind, outcome: filters of the page: run or step, benchmark or data source, question type, and one of
            `OUTCOMES`.
        facts: short texts next to the title.
        question, options, solution: the item.
        perception, reasoning: the tokens of both segments.
        notes: faults, such as why the item was lost.
        medium: the video to show; None to show none.
        verdict: `Yes`, `No` or `no verdict` on the observation; empty if no judge was asked.
        reason: the judge's reason.
    """

    title: str
    run: str
    group: str
    kind: str
    outcome: str
    facts: Sequence[str]
    question: str
    options: Sequence[Option]
    solution: str
    perception: Sequence[Token]
    reasoning: Sequence[Token]
    notes: Sequence[str] = ()
    medium: Medium | None = field(default=None, compare=False)
    verdict: str = ""
    reason: str = ""


Drawable = tuple[tuple[str, ...], str, T]
"""A stratum, a key and the thing to draw."""


def replies_of(run: Run, protocol: str) -> list[Drawable[Mapping[str, Any]]]:
    """Return each reply of a run with its stratum and its key, for `draw`; `card_of` makes the card.

    Args:
        run: the run.
        protocol: name of the protocol that decides whether an item is right.

    Returns:
        Stratum (run, benchmark and outcome), key and record of each item that the protocol scores.
    """
    rules = Protocol.load(protocol)
    found: list[Drawable[Mapping[str, Any]]] = []
    for index, record in enumerate(run.records):
        if record["question_type"] in rules.left_out:
            continue
        item = score_item(record, rules, index)
        outcome = "lost" if item.lost else outcome_of(item.strict)
        stratum = (run.name, record["benchmark"], outcome)
        found.append((stratum, record["problem_id"], {**record, "item": item, "run": run.name}))
    return found


def outcome_of(score: float) -> str:
    """Return `right`, `wrong` or `partly right`."""
    return "right" if score == 1 else "wrong" if score == 0 else "partly right"


def draw(found: Iterable[Drawable[T]], count: int, seed: int) -> list[T]:
    """Draw items evenly over strata; the same seed draws the same items in any order."""
    strata: dict[tuple[str, ...], list[tuple[bytes, T]]] = {}
    for stratum, key, value in found:
        rank = blake2b(key.encode(), digest_size=8, salt=seed.to_bytes(8, "big")).digest()
        strata.setdefault(stratum, []).append((rank, value))
    ordered = [[value for _, value in sorted(group, key=lambda one: one[0])] for _, group in sorted(strata.items())]
    return [value for turn in zip_longest(*ordered) for value in turn if value is not None][:count]


def card_of(record: Mapping[str, Any], tokenizer: Any = None, verdicts: Verdicts | None = None) -> Card:
    """Make the card of a record from `replies_of`.

    Args:
        record: the record, with its score under `item`.
        tokenizer: a fast tokenizer; None to colour words instead of tokens.
        verdicts: what judges said about the replies.
    """
    verdicts = verdicts or Verdicts()
    item, response = record["item"], record["response"] or ""
    perception, reasoning = tokens_of(response[:SHOWN], tokenizer)
    chosen = option_letter(parse_response(response).answer or response, record["options"] or []) if response else None
    correct = option_letter(record["solution"], record["options"] or [])
    facts = [f"strict {item.strict:.2f}", f"lenient {item.lenient:.2f}"]
    facts += ["in the template" if item.well_formed else "not in the template"]
    facts += [f"{record['completion_tokens']:,} tokens"] if record.get("completion_tokens") else []
    thought = verdicts.thought(record)
    facts += [f"thinking: {thought}"] if thought else []
    notes = [f"No reply: {item.lost}"] if item.lost else []
    if thought and chosen and thought != chosen:
        notes.append(f"The thinking concludes with {thought}, the answer is {chosen}")
    notes += ["Cut off by max_tokens"] if record["finish_reason"] == CUT else []
    notes += [f"{len(response) - SHOWN:,} more characters are not shown"] if len(response) > SHOWN else []
    verdict, reason = verdicts.verdict(record)
    return Card(
        title=record["problem_id"],
        run=record["run"],
        group=record["benchmark"],
        kind=record["question_type"] or "",
        outcome="lost" if item.lost else outcome_of(item.strict),
        facts=facts,
        question=record["problem"],
        options=[
            Option(text, chr(65 + i) == correct, chr(65 + i) == chosen)
            for i, text in enumerate(record["options"] or [])
        ],
        solution=answer_text(record["solution"]),
        perception=perception,
        reasoning=reasoning,
        notes=notes,
        medium=Medium(record["data_type"], record["path"], tuple(sorted((record["media"] or {}).items()))),
        verdict=verdict,
        reason=reason,
    )


def tokens_of(text: str, tokenizer: Any = None) -> tuple[list[Token], list[Token]]:
    """Split a reply into tokens and assign them to its segments by their first characters.

    >>> [[token.text for token in part] for part in tokens_of("<observation>a ball</observation> <think>x")]
    [['<observation>a', ' ball</observation>'], [' <think>x']]
    """
    end = perception_end(text)
    if tokenizer is None:
        spans = [match.span() for match in _WORDS.finditer(text)]
    else:
        spans = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    perception: list[Token] = []
    reasoning: list[Token] = []
    done = 0
    for start, stop in spans:
        if stop <= done:  # more bytes of a character that several tokens share
            continue
        (perception if start < end else reasoning).append(Token(text[done:stop]))
        done = stop
    if done < len(text):
        reasoning.append(Token(text[done:]))
    return perception, reasoning


def pictures_of_card(card: Card, media_root: Path | None, frames: int, room: int) -> Pictures:
    """Read the frames of a card's video as the evaluation samples them; without a root, return none."""
    if media_root is None or card.medium is None:
        return Pictures()
    try:
        return pictures_of(EVALUATION.fill(card.medium.element(media_root)), frames, room)
    except RowError as error:
        return Pictures(error=str(error))
