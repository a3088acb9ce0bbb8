# SPDX-License-Identifier: Apache-2.0
"""The one record type of the data tools, validated at the door.

    JSON of Video-R1, of the VideoP2R release (every value a text in its RL file), or our own  →  Record

`verl_p2r.data.columns.read_question` validates the question, its options and its solution, as in training; this module
validates the rest. No text is ever evaluated.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.records.rejects import RejectLog
from verl_p2r.accuracy import answer_accuracy
from verl_p2r.data.columns import Question, read_question
from verl_p2r.data.elements import MediaSources, read_element
from verl_p2r.data.errors import RowError
from verl_p2r.data.reading import RawRecord, read_values
from verl_p2r.data.responses import inside, response_of
from verl_p2r.data.truths import AGREEMENT as AGREEMENT
from verl_p2r.data.truths import UNUSABLE
from verl_p2r.data.values import is_unset, plain, read_number, shown
from verl_p2r.media.local_files import is_local_file

OUTSIDE_VARIABLE = "VERL_P2R_ALLOW_OUTSIDE_MEDIA_ROOT"  # of the environment: links may lead out of the media root
SHOWN_ID = 80  # characters of a `problem_id` in the log of rejects

_TRUTHS = {"true": True, "false": False}


class Medium(NamedTuple):
    """What a record is about: a file, or a part of it; equal where the same is seen.

    Args:
        kind: `image` or `video`.
        path: relative.
        rules: of `Record.media`, sorted.
    """

    kind: str
    path: str
    rules: tuple[tuple[str, Any], ...] = ()

    def element(self, root: Path) -> dict[str, Any]:
        """The medium as a canonical element, see `verl_p2r.data.elements`.

        Args:
            root: the folder that the path starts from.

        Raises:
            RowError: symbolic links lead out of the folder, and `VERL_P2R_ALLOW_OUTSIDE_MEDIA_ROOT` is not 1.

        >>> Medium("video", "STAR/a.mp4", (("fps", 1.0),)).element(Path("/data"))
        {'type': 'video', 'video': '/data/STAR/a.mp4', 'fps': 1.0}
        """
        allowed = os.environ.get(OUTSIDE_VARIABLE, "0") not in ("", "0")
        sources = MediaSources(str(root), allowed, outside_setting=f"{OUTSIDE_VARIABLE}=1")
        return read_element({self.kind: self.path, **dict(self.rules)}, self.kind, "path", sources)


@dataclass(frozen=True)
class Record:
    """One question about one medium, with the response to it if there is one.

    Args:
        problem_id: unique in a data set.
        problem: the question, without its options.
        problem_type: one of `accuracy.problem_types()`.
        data_type: `image` or `video`.
        path: of the medium, relative, without `.` and `..`.
        solution: the correct answer, with or without its `<answer>` tags.
        options: of a multiple choice question.
        data_source: where the record is from; the path's first folder when the file does not say.
        answer: the solution again, in the release's own words.
        observation, process, output: of a response; see `response`.
        reward: the response's accuracy, in [0, 1].
        select: whether the response was kept.
        media: how the medium is sampled and sized where it is not as all others: `verl_p2r.data.fields.media_of`.
        facts: what an observation must state, for the judge `facts`: `verl_p2r.data.fields.facts_of`.
        extra: fields of the file that are none of these, as they were.
        file, line: where the record was read.
    """

    problem_id: str
    problem: str
    problem_type: str
    data_type: str
    path: str
    solution: str
    options: tuple[str, ...] = ()
    data_source: str = ""
    answer: str | None = None
    observation: str | None = None
    process: str | None = None
    output: str | None = None
    reward: float | None = None
    select: bool | None = None
    media: Mapping[str, Any] = field(default_factory=dict)
    facts: Sequence[Mapping[str, Any]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    file: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)

    @classmethod
    def parse(cls, raw: Any, *, file: str = "", line: int = 0, index: int = 0) -> "Record":
        """Validate a record.

        Args:
            raw: what JSON holds; lists, numbers and truth values may be written as text, Python's or JSON's way.
            file, line: where it was read.
            index: the record's number, its `problem_id` when it has none.

        Edge rules [ours]:
            `answer` may differ from `solution` as far as the paper's 0.6 of accuracy allows. Fields that are missing,
            empty, `None`, `null` or `nan` are not set.

        Raises:
            RowError: a field is missing, or is not what it should be.

        >>> Record.parse({"problem": "How many?", "problem_type": "numerical", "data_type": "video", "options": "[]",
        ...               "path": "./STAR/a.mp4", "solution": "<answer>3</answer>", "select": "True"}).path
        'STAR/a.mp4'
        """
        question = read_question(raw)
        record = cls(
            problem_id=str(index) if question.problem_id is None else question.problem_id.strip(),
            problem=question.problem,
            problem_type=question.problem_type,
            data_type=question.kind,
            path=_relative(question.path),
            solution=question.solution,
            options=tuple(question.options),
            data_source=question.data_source,
            **{name: _text(raw, name) for name in _TEXTS},
            reward=_number(raw, "reward"),
            select=_truth(raw, "select"),
            media=question.media,
            facts=tuple(question.facts or ()),
            extra={name: value for name, value in raw.items() if name not in _OWN},
            file=file,
            line=line,
        )
        record._check_answer()
        return record

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object, unknown fields included and fields that are not set left out."""
        own = {name: getattr(self, name) for name in _OWN}
        own |= {"options": list(self.options), "media": dict(self.media) or None, "facts": list(self.facts) or None}
        return {name: value for name, value in own.items() if value is not None} | dict(self.extra)

    @property
    def response(self) -> str | None:
        """The response in the template; None without one. See `verl_p2r.data.responses.response_of`."""
        return response_of(self.output, self.process, self.observation, self.solution)

    def question(self, root: Path | None = None) -> Question:
        """The record's question, with a folder in front of its medium's path."""
        return Question(
            problem=self.problem,
            problem_type=self.problem_type,
            kind=self.data_type,
            path=str(root / self.path) if root else self.path,
            solution=self.solution,
            options=list(self.options),
            data_source=self.data_source,
            problem_id=self.problem_id,
            media=dict(self.media),
            facts=list(self.facts) or None,  # type: ignore[arg-type]
        )

    @property
    def medium(self) -> Medium:
        """What is seen of which file."""
        return Medium(self.data_type, self.path, tuple(sorted(self.media.items())))

    def error(self, field: str, reason: str, problem: str) -> RowError:
        """An error about one of the record's fields."""
        return RowError(field, reason, f"field {field}: {problem}")

    def _check_answer(self) -> None:
        """Refuse a record whose `answer` is another than its `solution`."""
        if self.answer is None:
            return
        answer, solution = inside(self.answer, "answer"), inside(self.solution, "answer")
        if answer.casefold() == solution.casefold():
            return
        if answer_accuracy(self.problem_type, answer, solution, options=self.options) < AGREEMENT:
            raise RowError(
                "answer",
                "conflicting answers",
                f"field answer is {_short(answer)} but solution is {_short(solution)}: correct one of them, or drop "
                "the record",
            )


_TEXTS = ("answer", "observation", "process", "output")
_OWN = tuple(name for name in Record.__dataclass_fields__ if name not in ("extra", "file", "line"))


def files_of(inputs: Iterable[str | Path]) -> list[Path]:
    """The files of inputs: files as they are; of a folder that a step has written, its records, in order.

    Raises:
        ValueError: there is no such file, or a folder without records.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        found = sorted(path.glob("part-*.jsonl")) if path.is_dir() else [path] if is_local_file(path) else []
        if not found:
            what = "holds no part-*.jsonl of a step" if path.is_dir() else "does not exist"
            steps = sorted({str(part.parent) for part in path.glob("*/part-*.jsonl")})
            hint = f"; did you mean {' or '.join(steps)}?" if steps else ""
            raise ValueError(f"{path} {what}: name files of records, or the output folder of a step{hint}")
        files += found
    return files


class Records:
    """The records of some files, one by one; those that are none go to the log of rejects.

    Args:
        files: JSON lists or JSON lines, gzip-compressed or not.
        rejects: the log.
        on_bytes: told how many more bytes have been read.
    """

    def __init__(
        self, files: Sequence[Path], rejects: RejectLog, on_bytes: Callable[[int], object] = lambda count: None
    ) -> None:
        self.files, self.rejects, self.on_bytes = files, rejects, on_bytes
        self.read = 0
        self.unusable: Counter[tuple[str, str]] = Counter()
        """Records whose ground truth nothing can match, by modality and problem type; they are rejected."""

    def __iter__(self) -> Iterator[Record]:
        seen: dict[bytes, int] = {}  # of hashes: 263K of them take 40 MB, however long the ids
        for file in self.files:
            for raw in read_values(file, self.on_bytes):
                index = self.read
                self.read += 1
                try:
                    record = _parsed(raw, index)
                    first = seen.setdefault(blake2b(record.problem_id.encode(), digest_size=8).digest(), index)
                    if first != index:
                        raise RowError(
                            "problem_id",
                            "duplicate id",
                            f"field problem_id is {_short(record.problem_id)}, as record {first + 1} of the input has "
                            "it: give each record its own",
                        )
                except RowError as error:
                    if error.reason == UNUSABLE:
                        self.unusable[raw.value["data_type"], raw.value["problem_type"]] += 1
                    self.rejects.add(raw.file, raw.line, _id_of(raw.value), error)
                else:
                    yield record


def _parsed(raw: RawRecord, index: int) -> Record:
    if isinstance(raw.value, RowError):
        raise raw.value
    return Record.parse(raw.value, file=raw.file, line=raw.line, index=index)


def _id_of(value: Any) -> str | None:
    named = value.get("problem_id") if isinstance(value, Mapping) else None
    return None if is_unset(named) else named[:SHOWN_ID] if isinstance(named, str) else shown(named, SHOWN_ID)


def _relative(path: str) -> str:
    """A path that stays below the media's folder, in its shortest form."""
    path = path.strip()
    parts = [part for part in path.split("/") if part not in ("", ".")]
    windows = "\\" in path or path[1:2] == ":" or path[:5].lower() == "data:"
    if ".." in parts or path.startswith(("/", "~")) or windows or "://" in path or "\0" in path or not parts:
        raise RowError(
            "path",
            "unsafe path",
            f"field path is {_short(path)}: give a path relative to the folder of the media, without '..', with '/'",
        )
    return "/".join(parts)


def _text(raw: Mapping[str, Any], name: str) -> str | None:
    value = raw.get(name)
    if type(value) is str or value is None:
        return None if is_unset(value) else value
    value = plain(value)
    if is_unset(value):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError(name, "no text", f"field {name} is {_short(value)}: give a text, or leave it out")
    return value


def _number(raw: Mapping[str, Any], name: str) -> float | None:
    value = raw.get(name)
    if is_unset(value):
        return None
    number = read_number(value)
    if number is None:
        raise RowError(name, "no number", f"field {name} is {_short(value)}: give a number, or leave it out")
    return float(number)


def _truth(raw: Mapping[str, Any], name: str) -> bool | None:
    value = plain(raw.get(name))
    if isinstance(value, bool) or is_unset(value):
        return value if isinstance(value, bool) else None
    truth = _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else None
    if truth is None:
        raise RowError(name, "no truth value", f"field {name} is {_short(value)}: give true or false, or leave it out")
    return truth


def _short(value: Any) -> str:
    return shown(value, 80)
