# SPDX-License-Identifier: Apache-2.0
"""A page to look at records with: a sample of them with the frames that a model sees, in one HTML file.

    files → sample (evenly over problem types, kept and dropped) → frames of its media → page

The page asks nothing of a network. What records say stands in it as text, escaped, and its security policy lets no
script run but its own.
"""

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappush, heappushpop
from importlib.resources import files as resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from data_tools.look.pictures import Pictures, pictures_of
from data_tools.look.stats import left_out
from data_tools.records.files import Medium, Record, Records, files_of
from data_tools.records.folders import whole_files
from data_tools.records.history import history_of
from data_tools.records.outputs import check_file
from data_tools.records.rejects import RejectLog
from data_tools.steps.run import DROPPED
from verl_p2r.accuracy import answer_accuracy, answer_text, problem_types
from verl_p2r.cpus import available_cpus
from verl_p2r.data.errors import RowError
from verl_p2r.template import parse_response

STATES = ("kept", "dropped")
TEXT = 20_000  # characters that are shown of a text
OPTION, OPTIONS = 1_000, 120  # characters that are shown of an option, and options of a question
PICTURES = 16 << 20  # bytes that all pictures take on the page, at most


@dataclass(frozen=True)
class Option:
    """One option of a question; `correct` by the solution, `chosen` by the response."""

    text: str
    correct: bool
    chosen: bool


@dataclass(frozen=True)
class Card:
    """A record as the page shows it, its texts shortened.

    Args:
        record: its `problem_id`; `where`: the file and line it was read from.
        problem_type, modality, source, path, question, options, solution: as in `Record`.
        more_options: how many are left out of `options`.
        medium: what is seen of it.
        state: one of `STATES`.
        reason: why it was dropped, with the step's name; `message`: the same in full.
        observation, think, answer: of the response; `raw`: all of it, where it does not keep to the template.
        accuracy: of the answer, in [0, 1].
        verdict: of the judge: `value`, `reason` and `source`.
        generated_by: the model, where a step has noted it.
        more: the fields that have no place of their own, as JSON.
    """

    record: str
    where: str
    problem_type: str
    modality: str
    source: str
    path: str
    question: str
    options: tuple[Option, ...]
    more_options: int
    solution: str
    medium: Medium
    state: str
    reason: str
    message: str
    observation: str
    think: str
    answer: str
    raw: str
    accuracy: float | None
    verdict: Mapping[str, Any] | None
    generated_by: str
    more: str

    @classmethod
    def of(cls, record: Record) -> "Card":
        """The card of a record."""
        observation, think, answer, raw = _response(record)
        step, reason, message = _drop(record)
        verdict = record.extra.get("verdict")
        own = ("dropped", "verdict", "generated_by")
        more = {name: value for name, value in record.extra.items() if name not in own}
        more |= {name: value for name in ("media", "facts") if (value := getattr(record, name))}
        return cls(
            record=_short(record.problem_id, OPTION),
            where=f"{record.file}:{record.line}",
            problem_type=record.problem_type,
            modality=record.data_type,
            source=_short(record.data_source, OPTION),
            path=_short(record.path, OPTION),
            question=_short(record.problem),
            options=tuple(_options(record, answer)),
            more_options=max(len(record.options) - OPTIONS, 0),
            solution=_short(answer_text(record.solution)),
            medium=record.medium,
            state=_state(record),
            reason=": ".join(filter(None, (step, reason))),
            message=message,
            observation=_short(observation),
            think=_short(think),
            answer=_short(answer),
            raw=_short(raw),
            accuracy=record.reward,
            verdict={name: _said(verdict.get(name)) for name in ("value", "reason", "source")}
            if isinstance(verdict, Mapping)
            else None,
            generated_by=_said(record.extra.get("generated_by")),
            more=_short(json.dumps(more, ensure_ascii=False, indent=2)) if more else "",
        )


@dataclass(frozen=True)
class Sample:
    """Records drawn from files.

    Args:
        cards: what was drawn, in the order of the page.
        totals: problem type and state → records that there are.
        history: the steps that they have come through.
        files: that were read.
        seed: of the draw.
    """

    cards: Sequence[Card]
    totals: Counter[tuple[str, str]]
    history: Sequence[Mapping[str, Any]] = ()
    files: Sequence[Path] = ()
    seed: int = 0

    @classmethod
    def draw(
        cls,
        sources: Sequence[Sequence[Path]],
        count: int,
        seed: int,
        rejects: RejectLog,
        on_bytes: Callable[[int], object] = lambda count: None,
    ) -> "Sample":
        """Read files and draw from them; memory holds the sample and eight bytes a record.

        Args:
            sources: from `sources_of`.
            count: records to draw.
            seed: the same one draws the same records, in whatever order they stand.
            rejects: where records go that cannot be read.
            on_bytes: told how many more bytes of the files have been read.

        Edge rules [ours]:
            Problem types, and of each the kept and the dropped, get equal shares; what one of them cannot fill goes
            to the others. A record that several sources hold counts once, as the first of them has it.
        """
        totals: Counter[tuple[str, str]] = Counter()
        drawn: dict[tuple[str, str], list[tuple[int, int, Card]]] = {}
        for number, (key, record) in enumerate(_distinct(sources, rejects, on_bytes)):
            stratum = record.problem_type, _state(record)
            totals[stratum] += 1
            rank = -int.from_bytes(blake2b(key, digest_size=8, salt=seed.to_bytes(8, "big")).digest(), "big")
            heap = drawn.setdefault(stratum, [])  # of the lowest hashes, the highest of them on top
            if len(heap) < count:
                heappush(heap, (rank, -number, Card.of(record)))
            elif rank > heap[0][0]:
                heappushpop(heap, (rank, -number, Card.of(record)))
        strata = [
            [card for *_, card in sorted(drawn.get((kind, state), []), reverse=True)]
            for kind in problem_types()
            for state in STATES
        ]
        cards = [card for turn in zip_longest(*strata) for card in turn if card is not None][:count]
        files = [file for source in sources for file in source]
        return cls(cards, totals, history_of(files), files, seed)


def sources_of(inputs: Iterable[str | Path]) -> list[list[Path]]:
    """The files of each input, of a step's folder also those of the records it has dropped; the last step's first.

    Raises:
        ValueError: there is no such file, or a folder without records.
    """
    sources = []
    for path in map(Path, inputs):
        dropped = [path / DROPPED] if (path / DROPPED).is_file() else []
        sources.append([*sorted(path.glob("part-*.jsonl")), *dropped] if dropped else files_of([path]))
    return sorted(sources, key=lambda files: -len(history_of(files)))


def _distinct(
    sources: Sequence[Sequence[Path]], rejects: RejectLog, on_bytes: Callable[[int], object]
) -> Iterator[tuple[bytes, Record]]:
    seen: set[bytes] = set()
    for files in sources:
        for record in Records(files, rejects, on_bytes):
            named = f"{record.problem_id}\n{record.path}\n{record.problem}"
            key = blake2b(named.encode(), digest_size=8).digest()
            if key not in seen:
                seen.add(key)
                yield key, record


@dataclass(frozen=True)
class Page:
    """What was written: its size in bytes, and the errors of the media that could not be shown."""

    bytes: int
    faults: Sequence[str]


def write_page(
    sample: Sample, out: Path, media_root: Path, frames: int, on_medium: Callable[[], object] = lambda: None
) -> Page:
    """Read the media of a sample and write its page, which appears whole or not at all.

    Args:
        sample: the records.
        out: the file; an earlier one there is replaced.
        media_root: the folder that the records' paths start from.
        frames: the most pictures of a video.
        on_medium: told of each record whose medium has been read.

    Raises:
        ValueError: the file is one of those that were read, is not a regular file, or another process is writing it.
        OSError: the page cannot be written; an earlier one stays.
    """
    if os.path.realpath(out) in map(os.path.realpath, sample.files):
        raise ValueError(f"{out} would be replaced, but records are read from it: name another file")
    room = PICTURES // max(len(sample.cards), 1)
    media = Counter(card.medium for card in sample.cards)

    def read(medium: Medium) -> Pictures:
        try:
            pictures = pictures_of(medium.element(media_root), frames, room)
        except RowError as error:  # its path leads out of the media root
            pictures = Pictures(error=str(error))
        for _ in range(media[medium]):
            on_medium()
        return pictures

    check_file(out)
    with whole_files(out.parent, out.name) as partial:
        with ThreadPoolExecutor(min(4, available_cpus())) as pool:
            shown = dict(zip(media, pool.map(read, media), strict=True))
        html = _render(sample, [(card, shown[card.medium]) for card in sample.cards])
        content = html.encode("utf-8", "replace")  # a file's name need not be Unicode
        (partial / out.name).write_bytes(content)
    return Page(len(content), [pictures.error for pictures in shown.values() if pictures.error])


def _render(sample: Sample, cards: Sequence[tuple[Card, Pictures]]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["csp"] = _csp
    template = environment.from_string(
        resources("data_tools.look").joinpath("view.html.j2").read_text(encoding="utf-8")
    )
    shown = Counter((card.problem_type, card.state) for card, _ in cards)
    choices = {
        name: sorted({getattr(card, name) for card, _ in cards} - {""})
        for name in ("problem_type", "source", "modality", "state", "reason")
    }
    kinds = [kind for kind in problem_types() if any(sample.totals[kind, state] for state in STATES)]
    return template.render(
        sample=sample,
        cards=cards,
        shown=shown,
        choices=choices,
        kinds=kinds,
        states=STATES,
        left_out=left_out,
    )


def _csp(text: str) -> str:
    """A script or style as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _state(record: Record) -> str:
    return STATES[record.extra.get("dropped") is not None or record.select is False]


def _drop(record: Record) -> tuple[str, str, str]:
    """Step, reason and message of a record that was dropped."""
    dropped = record.extra.get("dropped")
    if isinstance(dropped, Mapping):
        step, reason, message = (_said(dropped.get(name)) for name in ("step", "reason", "message"))
        return step, reason or "no reason given", message
    return ("", "not selected", "field select is false") if _state(record) == "dropped" else ("", "", "")


def _response(record: Record) -> tuple[str, str, str, str]:
    """Observation, thinking and answer of a response as far as they can be told, and the whole of one in bad form."""
    whole = record.output or (record.process if "<observation>" in (record.process or "") else None)
    if whole:
        parsed = parse_response(whole)
        raw = "" if parsed.perception_well_formed and parsed.reasoning_well_formed else whole
        return parsed.observation or "", parsed.think or "", parsed.answer or "", raw
    observation, process = record.observation or "", record.process or ""
    return parse_response(observation).observation or observation, parse_response(process).think or process, "", ""


def _options(record: Record, answer: str) -> Iterator[Option]:
    def same(option: str, text: str) -> bool:
        return answer_accuracy("multiple choice", option, text, options=record.options) == 1

    for option in record.options[:OPTIONS]:
        yield Option(_short(option, OPTION), same(option, record.solution), same(option, answer))


def _said(value: Any) -> str:
    """What a field says, whatever it is: JSON gives anything."""
    return "" if value is None else _short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _short(text: str, most: int = TEXT) -> str:
    """A text, its end left out when it is long.

    >>> _short("a long text", 6)
    'a long … [5 more characters]'
    """
    return text if len(text) <= most else f"{text[:most]} … [{len(text) - most:,} more characters]"
