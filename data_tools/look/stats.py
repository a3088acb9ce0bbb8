# SPDX-License-Identifier: Apache-2.0
"""Statistics of a set of records: counts, lengths of both segments, repeated questions, what earlier steps kept."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from data_tools.records.history import history_of
from data_tools.steps.decontaminate import question_key
from verl_p2r.accuracy import problem_types
from verl_p2r.data.record import Record
from verl_p2r.settings import LengthBand, P2RSettings
from verl_p2r.template import block_spans
from verl_p2r.visible import is_visible

PROCESSES = ("perception", "reasoning")
SOURCES = 20  # sources shown in a table
QUANTILES = (0.05, 0.5, 0.95)

_BATCH = 256  # responses tokenized at a time


@dataclass
class Stats:
    """Counts of a set of records.

    Args:
        records: number of records.
        responses: number of records with a response in the template.
        types: records by modality and problem type.
        sources: records by data source.
        lengths: process → length in tokens → number of responses; empty without a tokenizer.
        questions: number of distinct questions, compared by their words.
        same_medium: number of records whose question is asked about the same medium by an earlier record.
        history: earlier steps, each with its name, records read and written, and records left out by reason.
    """

    records: int = 0
    responses: int = 0
    types: Counter[tuple[str, str]] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    questions: int = 0
    same_medium: int = 0
    history: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def collect(cls, records: Iterable[Record], tokenizer: Any = None, files: Sequence[Path] = ()) -> "Stats":
        """Collect the statistics in one pass.

        Args:
            records: the records.
            tokenizer: a fast Hugging Face tokenizer, which measures responses.
            files: files of the records, whose folders tell what earlier steps kept.
        """
        stats = cls(history=history_of(files), lengths={name: Counter() for name in PROCESSES} if tokenizer else {})
        questions: set[bytes] = set()
        asked: set[bytes] = set()
        for response in _batches(stats._count(records, questions, asked)):
            if tokenizer is not None:
                for lengths in segment_lengths(response, tokenizer):
                    for name, length in zip(PROCESSES, lengths, strict=True):
                        stats.lengths[name][length] += 1
        stats.questions = len(questions)
        stats.same_medium = stats.records - len(asked)
        return stats

    def _count(self, records: Iterable[Record], questions: set[bytes], asked: set[bytes]) -> Iterator[str]:
        """Count records in every way except by length, and yield their responses."""
        for record in records:
            self.records += 1
            self.types[record.data_type, record.problem_type] += 1
            self.sources[record.data_source] += 1
            question = question_key(record.problem)
            questions.add(_hash(question))
            asked.add(_hash(f"{record.path}\n{question}"))
            if (response := record.response) is not None:
                self.responses += 1
                yield response

    def tables(self) -> list[Table]:
        """Return the counts as tables for a terminal."""
        tables = [types_table(self.types), _sources_table(self.sources), self._questions_table()]
        if any(self.lengths.values()):
            tables.append(_lengths_table(self.lengths))
        if self.history:
            tables.append(_history_table(self.history))
        return tables

    def _questions_table(self) -> Table:
        table = _table("questions", "records", "share")
        for name, count in (
            ("with a response in the template", self.responses),
            ("with words that another record has too", self.records - self.questions),
            ("the same, about the same medium", self.same_medium),
        ):
            table.add_row(name, f"{count:,}", _share(count, self.records))
        return table


def segment_lengths(responses: Sequence[str], tokenizer: Any) -> list[tuple[int, int]]:
    """Measure both segments of responses as the length reward does: the tokens of visible text in their blocks.

    Args:
        responses: texts without their end token.
        tokenizer: a fast Hugging Face tokenizer.

    Returns:
        For each response the lengths of P and R in tokens, equal to `verl_p2r.segments.visible_lengths`.
    """
    encoded = tokenizer(list(responses), add_special_tokens=False, return_offsets_mapping=True)
    lengths = []
    for response, offsets in zip(responses, encoded["offset_mapping"], strict=True):
        counts = dict.fromkeys(("observation", "think", "answer"), 0)
        for tag, (begin, stop) in block_spans(response).items():
            counts[tag] = sum(begin <= start < stop and is_visible(response[start:end]) for start, end in offsets)
        lengths.append((counts["observation"], counts["think"] + counts["answer"]))
    return lengths


def types_table(counts: Mapping[tuple[str, str], int]) -> Table:
    """Make a table of records by modality and problem type."""
    table = _table("modality", *problem_types(), "sum")
    for name, rows in (("image", ("image",)), ("video", ("video",)), ("sum", ("image", "video"))):
        cells = [sum(counts.get((row, kind), 0) for row in rows) for kind in problem_types()]
        table.add_row(name, *(f"{count:,}" for count in (*cells, sum(cells))))
    return table


def _sources_table(sources: Counter[str]) -> Table:
    table = _table("source", "records", "share")
    for name, count in top_sources(sources):
        table.add_row(escape(name), f"{count:,}", _share(count, sources.total()))
    return table


def top_sources(sources: Counter[str]) -> list[tuple[str, int]]:
    """Return the `SOURCES` most frequent sources, and all others as one."""
    shown = sources.most_common(SOURCES)
    rest = sources.total() - sum(count for _, count in shown)
    return shown + ([(f"{len(sources) - SOURCES} more", rest)] if rest else [])


def _lengths_table(lengths: Mapping[str, Counter[int]]) -> Table:
    settings = P2RSettings()
    table = _table("tokens of", *(f"{q:.0%}" for q in QUANTILES), "band", "below", "inside", "above")
    for name, counts in lengths.items():
        band: LengthBand = getattr(settings, name).length
        below = sum(n for length, n in counts.items() if length < band.minimum)
        above = sum(n for length, n in counts.items() if length > band.maximum)
        parts = (below, counts.total() - below - above, above)
        values = [str(quantile(counts, q)) for q in QUANTILES]
        shares = [_share(part, counts.total()) for part in parts]
        table.add_row(name, *values, f"{band.minimum}-{band.maximum}", *shares)
    return table


def quantile(counts: Mapping[int, int], share: float) -> int:
    """Return the smallest value such that at least a share of the counted values do not exceed it.

    >>> quantile({10: 1, 20: 2, 30: 1}, 0.5), quantile({10: 1, 20: 2, 30: 1}, 1.0)
    (20, 30)
    """
    wanted, seen, value = share * sum(counts.values()), 0, 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            break
    return value


def _history_table(history: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("step", "read", "kept", "keep rate", "left out", "of those read")
    for step in history:
        read, kept = step["read"], step["written"]
        table.add_row(step["step"], f"{read:,}", f"{kept:,}", _share(kept, read), f"{read - kept:,}")
        for reason, count in left_out(step):
            table.add_row(f"  {escape(reason)}", "", "", "", f"{count:,}", _share(count, read))
    return table


def left_out(step: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return why a step left records out and how many, the most frequent reason first.

    >>> left_out({"step": "verify", "rejected": {"no reply": 2}, "dropped": {"accuracy below 0.6": 7}})
    [('dropped, accuracy below 0.6', 7), ('rejected, no reply', 2)]
    """
    kinds = ("dropped", "rejected")
    reasons = [(f"{kind}, {reason}", n) for kind in kinds for reason, n in (step.get(kind) or {}).items()]
    return sorted(reasons, key=lambda reason: -reason[1])


def _batches(responses: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(responses, _BATCH)):
        yield batch


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None)
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()
