# SPDX-License-Identifier: Apache-2.0
"""Training records whose medium or question occurs in a benchmark, left out and listed."""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from data_tools.records.files import Record
from data_tools.records.folders import described
from data_tools.steps.run import Dropped, StepReport, run_step
from verl_p2r.data.errors import RowError
from verl_p2r.data.reading import RawRecord, read_values
from verl_p2r.data.values import is_unset, plain, shown

MEDIUM, QUESTION = "medium in a benchmark", "question in a benchmark"

# What benchmarks call them, the likeliest first.
MEDIUM_FIELDS = ("path", "video", "video_path", "video_name", "video_id", "videoID", "image", "image_path")
QUESTION_FIELDS = ("problem", "question")

_MARKS = re.compile(r"<(?:image|video|audio)>")
_LABEL = r"[\s,;][(\[]?{}[).:\]]\s"  # A. or (A) or A) or [A], behind white space
_OPTIONS = re.compile(
    rf"\s*(?:Options|Choices|Candidates):\s*\n.*|{_LABEL.format('A')}.+?{_LABEL.format('B')}.*", re.DOTALL
)
_INSTRUCTION = re.compile(r"(?im)^\s*(?:please\s+)?(?:answer|respond|reply|select|choose)\b[^?\n]*$")
# Where a benchmark's field is a mapping, what in it may be the path, or the question.
_PATHS = ("path", "video", "image", "url", "video_url", "image_url", "video_path", "image_path", "file_name")
_QUESTIONS = ("text", "content", "question")
_NO_WORD = re.compile(r"[\W_]+")


def question_key(question: str) -> str:
    """Reduce a question to its words: case, punctuation, width of characters and placeholders do not count.

    Edge rules [ours]:
        Options that the question carries, under `Options:` or as `A. …`, `B. …`, are removed with all that follows;
        so are lines that say how to answer, unless nothing else is left.

    >>> question_key("What does he hold?\\nA. a cup\\nB. a book\\nAnswer with the letter.")
    'what does he hold'
    >>> question_key("<video>What  is the man's NAME?") == question_key("what is the man’s name")
    True
    """
    text = _OPTIONS.sub("", _MARKS.sub(" ", question))
    return _words(_INSTRUCTION.sub(" ", text)) or _words(text) or _words(question)


def _words(text: str) -> str:
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def medium_key(path: str) -> str:
    """Reduce a path to its file name without folders and ending: benchmarks unpack the same files elsewhere.

    Edge rules [ours]:
        A name of digits alone tells too little: the last folder's name is part of it, where there is one.

    >>> medium_key("./STAR/Charades_v1_480/0a8ck.mp4"), medium_key("0A8CK"), medium_key("x/images/12.png")
    ('0a8ck', '0a8ck', 'images/12')
    """
    posix = PurePosixPath(path.strip().replace("\\", "/"))
    stem = posix.stem if re.fullmatch(r"\.\w{2,5}", posix.suffix) else posix.name
    return (f"{posix.parent.name}/{stem}" if stem.isdecimal() and posix.parent.name else stem).casefold()


class Benchmark:
    """What occurs in some benchmark files, and where first.

    Args:
        files: JSON lists or JSON lines, gzip-compressed or not, or parquet.
        medium_fields: the first of these that a row has names its medium.
        question_fields: likewise its question.
        by: what counts, `medium`, `question` or both; the fields of the other are not read.

    Raises:
        ValueError: a file cannot be read, a row has one of the fields and what it holds cannot be read, or no row has
            any of them.
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
                    raise ValueError(f"{raw.file}:{raw.line}: {raw.value}: a benchmark must be read whole")
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
        """Why a record must go; None when it may stay.

        Args:
            record: the record.
            by: what counts, `medium`, `question` or both.
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
    on_bytes: Callable[[int], object] = lambda count: None,
) -> StepReport:
    """Leave out the records that occur in a benchmark.

    Args:
        files: of records.
        benchmark: what must not be trained on.
        folder: for the output, see `steps`; an earlier output is replaced.
        by: what counts, `medium`, `question` or both.
        max_reject_share: the largest share of records, in [0, 1], that may be unreadable.
        on_bytes: told how many more bytes of the files have been read.

    Raises:
        ValueError: the folder cannot be used.
    """

    def transform(records: Iterable[Record]) -> Iterator[tuple[Record, RowError | None]]:
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
    """The texts of the first field that a row has.

    Raises:
        ValueError: what it holds cannot be read.
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
    """The texts in a field: itself, those of a list, those under the keys of a mapping; none if one cannot be read."""
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
