# SPDX-License-Identifier: Apache-2.0
"""What all adapters share: the item that they yield, and how official files are read."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from verl_p2r.answers.options import LETTERS
from verl_p2r.evaluation import Protocol

CHOICE, NUMBER, FREE = "multiple choice", "regression", "free-form"


@dataclass(frozen=True)
class Item:
    """One question of a benchmark, as its official files have it.

    Args:
        id: unique within the benchmark.
        question: without its options.
        problem_type: one of `accuracy.PROBLEM_TYPES`.
        solution: the true answer; of a multiple choice question the letter.
        path: the video's path below the benchmark's folder.
        question_type: the category that the benchmark itself averages or reports by.
        options: lettered, see `lettered`.
        video_id: what clusters of intervals go by; empty for the path.
        media: `video_start` and `video_end` of a clip, in seconds.
        categories: further categories, name → value.
    """

    id: str
    question: str
    problem_type: str
    solution: str
    path: str
    question_type: str
    options: tuple[str, ...] = ()
    video_id: str = ""
    media: Mapping[str, Any] = field(default_factory=dict)
    categories: Mapping[str, str] = field(default_factory=dict)


class Download:
    """The folder a benchmark was downloaded to; it notes which files were read.

    Args:
        folder: the folder; for Video-R1's files, the one file.

    Attributes:
        read: the annotation files that were read, for the manifest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: list[Path] = []

    def files(self, *patterns: str) -> list[Path]:
        """The files of the first pattern that any match, in order of their names.

        Raises:
            ValueError: none matches.
        """
        for pattern in patterns:
            if found := sorted(self.folder.glob(pattern)):
                self.read += found
                return found
        raise ValueError(
            f"{self.folder} holds none of {', '.join(patterns)}: name the folder the benchmark was downloaded to"
        )

    def rows(self, *patterns: str, fields: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        """The rows of the files of the first pattern that any match; of parquet only the named columns.

        Raises:
            ValueError: none matches, a file cannot be read, or a row is not an object.
        """
        for file in self.files(*patterns):
            yield from rows_of(file, fields)

    def first_file(self, *paths: str) -> str:
        """The first of some paths below the folder that is a file; the first of all when none is."""
        return next((path for path in paths if (self.folder / path).is_file()), paths[0])


@dataclass(frozen=True)
class Adapter:
    """How one benchmark's files are read.

    Args:
        name: the benchmark's name in scores.
        title: its name in reports.
        hub: where it is published.
        licence: what its pages say about its annotations and media.
        counts: question type → number of items; what a complete download gives.
        items: reads them from the folder of the download.
    """

    name: str
    title: str
    hub: str
    licence: str
    counts: Mapping[str, int]
    items: Callable[[Download, Protocol], Iterator[Item]]

    @property
    def total(self) -> int:
        """The number of items of a complete download."""
        return sum(self.counts.values())


def rows_of(file: Path, fields: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a parquet, JSON or JSON-lines file; of parquet only the named columns, where the file has them.

    Raises:
        ValueError: the file cannot be read, or a row is not an object.
    """
    try:
        rows = _parquet(file, fields) if file.suffix == ".parquet" else _json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read ({error}): download it again") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{file}, row {number}: holds a {type(row).__name__} where an object belongs")
        yield row


def field_of(row: Mapping[str, Any], *names: str) -> Any:
    """The first of some fields that is set.

    Raises:
        ValueError: none is.
    """
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise ValueError(f"a row has none of the fields {', '.join(names)}, but {', '.join(map(str, row))}")


def lettered(texts: Sequence[Any]) -> tuple[str, ...]:
    """Options as `A. text`, whether or not they have their letters already.

    >>> lettered(["red", "blue"]), lettered(["A. red", "B. blue"])
    (('A. red', 'B. blue'), ('A. red', 'B. blue'))
    """
    options = [str(text).strip() for text in texts]
    if all(option.startswith(f"{letter}.") for option, letter in zip(options, LETTERS, strict=False)):
        return tuple(options)
    return tuple(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def _parquet(file: Path, fields: Collection[str]) -> list[Any]:
    parquet = pq.ParquetFile(file)
    rows: list[Any] = parquet.read([name for name in parquet.schema_arrow.names if name in fields]).to_pylist()
    return rows


def _json(file: Path) -> list[Any]:
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        rows: list[Any] = json.loads(text)
        return rows
    return [json.loads(line) for line in text.split("\n") if line.strip()]
