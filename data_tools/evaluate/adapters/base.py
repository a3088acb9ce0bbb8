# SPDX-License-Identifier: Apache-2.0
"""What all adapters share: the items that they yield, and reading official files."""

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
        solution: the correct answer; for a multiple choice question its letter.
        path: path of the video, below the benchmark's folder.
        question_type: the category that the benchmark itself averages or reports by.
        options: options with their letters, see `lettered`.
        video_id: cluster of the item in intervals; empty to use the path.
        media: `video_start` and `video_end` of a clip, in seconds.
        categories: other categories, name → value.
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
    """The folder of a downloaded benchmark; it notes which files were read.

    Args:
        folder: the folder; for Video-R1 one of its files.

    Attributes:
        read: the annotation files that were read, for the manifest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: list[Path] = []

    def files(self, *patterns: str) -> list[Path]:
        """Return the files that match the first pattern with any match, sorted by name.

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
        """Yield the rows of the files that match the first pattern with any match; from parquet only the named columns.

        Raises:
            ValueError: none matches, a file cannot be read, or a row is not an object.
        """
        for file in self.files(*patterns):
            yield from rows_of(file, fields)

    def first_file(self, *paths: str) -> str:
        """Return the first of some paths below the folder that is a file; the first path if none is."""
        return next((path for path in paths if (self.folder / path).is_file()), paths[0])


@dataclass(frozen=True)
class Adapter:
    """How the files of one benchmark are read.

    Args:
        name: name of the benchmark in scores.
        title: its name in reports.
        hub: where it is published.
        licence: licence of its annotations and media, as far as its pages say.
        counts: question type → number of items in a complete download.
        items: reads the items of a download.
    """

    name: str
    title: str
    hub: str
    licence: str
    counts: Mapping[str, int]
    items: Callable[[Download, Protocol], Iterator[Item]]

    @property
    def total(self) -> int:
        """Number of items in a complete download."""
        return sum(self.counts.values())


def rows_of(file: Path, fields: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet, JSON or JSON-lines file; from parquet only those of the named columns that exist.

    Raises:
        ValueError: the file cannot be read, or a row is not an object.
    """
    try:
        rows = _parquet(file, fields) if file.suffix == ".parquet" else _json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read ({error}): download it again") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{file}, row {number}: is a {type(row).__name__}, not an object: download it again")
        yield row


def field_of(row: Mapping[str, Any], *names: str) -> Any:
    """Return the first of some fields that is set.

    Raises:
        ValueError: none is.
    """
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise ValueError(f"a row has none of the fields {', '.join(names)}, but {', '.join(map(str, row))}")


def lettered(texts: Sequence[Any]) -> tuple[str, ...]:
    """Return options as `A. text`, whether they have their letters already or not.

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
