# SPDX-License-Identifier: Apache-2.0
"""Drops training records whose medium or question occurs in a benchmark."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from data_tools.records.folders import described
from data_tools.records.left_out import Dropped
from data_tools.steps.run import OnBytes, Outcome, StepReport, run_step
from verl_p2r.data.errors import RowError
from verl_p2r.data.messages import PLACEHOLDER
from verl_p2r.data.reading import RawRecord, read_values
from verl_p2r.data.record import Record
from verl_p2r.data.values import is_unset, plain, shown

MEDIUM, QUESTION = "medium in a benchmark", "question in a benchmark"

# Names of these fields in benchmarks, the most likely first.
MEDIUM_FIELDS = ("path", "video", "video_path", "video_name", "video_id", "videoID", "image", "image_path")
QUESTION_FIELDS = ("problem", "question")

_LABEL = r"[\s,;][(\[]?{}[).:\]]\s"  # A. or (A) or A) or [A], after white space
_OPTIONS = re.compile(
    rf"\s*(?:Options|Choices|Candidates):\s*\n.*|{_LABEL.format('A')}.+?{_LABEL.format('B')}.*", re.DOTALL
)
_INSTRUCTION = re.compile(r"(?im)^\s*(?:please\s+)?(?:answer|respond|reply|select|choose)\b[^?\n]*$")
# Keys that may name the path, or the question, where a benchmark's field is a mapping.
_PATHS = ("path", "video", "image", "url", "video_url", "image_url", "video_path", "image_path", "file_name")
_QUESTIONS = ("text", "content", "question")
_NO_WORD = re.compile(r"[\W_]+")


def question_key(question: str) -> str:
    """Reduce a question to its words, so that case, punctuation, width of characters and placeholders do not matter.

    Edge rules [ours]:
        Options in the question, under `Options:` or as `A. …`, `B. …`, are removed with everything after them. Lines
        that say how to answer are removed unless nothing else is left.

    >>> question_key("What does he hold?\\nA. a cup\\nB. a book\\nAnswer with the letter.")
    'what does he hold'
    >>> question_key("<video>What  is the man's NAME?") == question_key("what is the man’s name")
    True
    """
    text = _OPTIONS.sub("", PLACEHOLDER.sub(" ", question))
    return _words(_INSTRUCTION.sub(" ", text)) or _words(text) or _words(question)


def _words(text: str) -> str:
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def medium_key(path: str) -> str:
    """Reduce a path to its file name without folders and ending, because benchmarks unpack the same files elsewhere.

    Edge rules [ours]:
        A name of digits alone is ambiguous, so the name of its folder is kept too, if it has one.

    >>> medium_key("./STAR/Charades_v1_480/0a8ck.mp4"), medium_key("0A8CK"), medium_key("x/images/12.png")
    ('0a8ck', '0a8ck', 'images/12')
    """
    posix = PurePosixPath(path.strip().replace("\\", "/"))
    stem = posix.stem if re.fullmatch(r"\.\w{2,5}", posix.suffix) else posix.name
    return (f"{posix.parent.name}/{stem}" if stem.isdecimal() and posix.parent.name else stem).casefold()


class Benchmark:
    """The media and questions of some benchmark files.

    Args:
        files: JSON lists or JSON lines, gzip-compressed or not, or parquet.
        medium_fields: fields that may name the medium of a row; the first one that a row has counts.
        question_fields: fields that may hold the question of a row, likewise.
        by: what is compared: `medium`, `question` or both; fields of the other are not read.

    Attributes:
        media: `medium_key` of each medium → file and line of its first occurrence.
        questions: `question_key` of each question → file and line of its first occurrence.

    Raises:
        ValueError: a file or a field cannot be read, or no row has any of the fields.
    """

    def __init__(
        self,
        files: Iterable[Path],
        medium_fields: Sequence[str] = MEDIUM_FIELDS,
        question_fields: Sequence[str] = QUESTION_FIELDS,
        by: Collection[str] = ("medium", "question"),
    ) -> None:
        self.files = list(files)
        self.media: dict[str, str] = {}
        self.questions: dict[str, str] = {}
        for file in self.files:
            found = 0
            for raw in _rows(file, {*medium_fields, *question_fields}):
                if isinstance(raw.value, RowError):
                    raise ValueError(f"{raw.file}:{raw.line}: {raw.value}: a benchmark must be read completely")
                for what, key, keys, fields in (
                    ("medium", medium_key, self.media, medium_fields),
                    ("question", question_key, self.questions, question_fields),
                ):
                    for text in _first(raw, fields, what) if what in by else ():
                        keys.setdefault(key(text), f"{raw.file}:{raw.line}")
                        found += 1
            if not found:
                fields = ", ".join((*medium_fields, *question_fields))
                raise ValueError(
                    f"{file}: no row has one of the fields {fields}: name the benchmark's own (--medium-field, "
                    "--question-field)"
                )
        self.media.pop("", None)
        self.questions.pop("", None)

    def contains(self, record: Record, by: Collection[str] = ("medium", "question")) -> Dropped | None:
        """Return why a record must be dropped; None if it may stay.

        Args:
            record: the record.
            by: what is compared: `medium`, `question` or both.
        """
        where = self.media.get(medium_key(record.path)) if "medium" in by else None
        if where:
            return Dropped("path", MEDIUM, f"{record.path} occurs in the benchmark at {where}")
        where = self.questions.get(question_key(record.problem)) if "question" in by else None
        if where:
            return Dropped("problem", QUESTION, f"its question occurs in the benchmark at {where}")
        return None


def decontaminate(
    files: Sequence[Path],
    benchmark: Benchmark,
    folder: Path,
    *,
    by: Collection[str] = ("medium", "question"),
    max_reject_share: float = 0.01,
    on_bytes: OnBytes = lambda count: None,
) -> StepReport:
    """Drop the records that occur in a benchmark.

    Args:
        files: files of records, see `records.files.files_of`.
        benchmark: what must not be trained on.
        folder: output folder; an earlier output is replaced.
        by: what is compared: `medium`, `question` or both.
        max_reject_share: the largest share of records, in [0, 1], that may be unreadable.
        on_bytes: called as the files are read.

    Raises:
        ValueError: the folder cannot be used.
    """

    def transform(records: Iterable[Record]) -> Iterator[Outcome]:
        return ((record, benchmark.contains(record, by)) for record in records)

    return run_step(
        "decontaminate",
        files,
        folder,
        transform,
        settings={"by": sorted(by), "benchmark": described(benchmark.files)},
        max_reject_share=max_reject_share,
        on_bytes=on_bytes,
    )


def _rows(file: Path, fields: Collection[str]) -> Iterator[RawRecord]:
    try:
        if file.suffix != ".parquet":
            yield from read_values(file)
            return
        parquet, row = pq.ParquetFile(file), 0
        for batch in parquet.iter_batches(columns=[name for name in parquet.schema_arrow.names if name in fields]):
            for value in batch.to_pylist():
                row += 1
                yield RawRecord(str(file), row, value)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as a benchmark ({error})") from error


def _first(raw: RawRecord, fields: Sequence[str], what: str) -> list[str]:
    """Return the texts in the first field that a row has.

    Raises:
        ValueError: the field cannot be read.
    """
    row = raw.value if isinstance(raw.value, Mapping) else {}
    for name in fields:
        value = plain(row.get(name))
        if is_unset(value) or value in ("", [], {}):
            continue
        texts = _texts(value, _PATHS if what == "medium" else _QUESTIONS)
        if not texts:
            raise ValueError(
                f"{raw.file}:{raw.line}: field {name} is {shown(value)}, in which no {what} can be read: name another "
                f"field (--{what}-field), or compare by the other alone (--by)"
            )
        return texts
    return []


def _texts(value: Any, keys: Sequence[str]) -> list[str]:
    """Return the texts in a field, which may be a text, a list, or a mapping with one of the keys.

    The result is empty if any of them cannot be read.
    """
    value = plain(value)
    if isinstance(value, str) and value.strip():
        return [value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [str(value)]
    if isinstance(value, list | tuple):
        found = [_texts(item, keys) for item in value]
        return [text for texts in found for text in texts] if all(found) else []
    if isinstance(value, Mapping):
        return next((texts for key in keys if (texts := _texts(value.get(key), keys))), [])
    return []
