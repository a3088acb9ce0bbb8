# SPDX-License-Identifier: Apache-2.0
"""Files of rows or records, parquet or JSON, as Arrow tables. A bad row costs itself alone.

Hugging Face features are read as what they store (`bytes` and `path`), so loading a table decodes nothing.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_p2r.data.errors import RowError
from verl_p2r.data.reading import DAMAGE, read_values
from verl_p2r.data.values import check_values, shown

JSON_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
BATCH = 16  # rows converted to Python objects at a time; each may hold an image

Errors = dict[int, RowError]
"""Row → why it cannot be used; its columns are all None."""

TableOfRecords = Callable[[list[Any]], tuple[pa.Table, Errors]]
"""Makes a table of the JSON values of a file of records."""


@dataclass(frozen=True)
class Origins:
    """Where the rows of a table are from.

    Args:
        unusable: number of a row in the table → why it cannot be used.
        names: names of the files in messages.
        ends: number of the row after the last one of each file.
    """

    unusable: Errors
    names: Sequence[str]
    ends: Sequence[int]

    def place(self, row: int) -> tuple[str, int]:
        """Return the file of a row, and the row's number in that file."""
        file = bisect_right(self.ends, row)
        return self.names[file], row - (self.ends[file - 1] if file else 0)


def load(
    files: Sequence[str], of_records: TableOfRecords, loose: Collection[str] = (), names: Sequence[Any] | None = None
) -> tuple[pa.Table, Origins]:
    """Read files of rows or records.

    Args:
        files: paths of the files.
        of_records: makes a table of a JSON file that holds records.
        loose: see `read_table`.
        names: names of the files in messages; by default their paths.

    Returns:
        One table of all rows, and where they are from.

    Raises:
        ValueError: a file cannot be read, or the columns of the files do not fit together; the message names them.
    """
    names = list(map(str, files if names is None else names))
    tables: list[pa.Table] = []
    unusable: Errors = {}
    for file in files:
        table, errors = read_table(file, of_records, loose)
        offset = sum(map(len, tables))
        unusable |= {offset + row: error for row, error in errors.items()}
        tables.append(table)
    return joined(tables, names, loose), Origins(unusable, names, list(accumulate(map(len, tables))))


def read_table(file: str, of_records: TableOfRecords, loose: Collection[str]) -> tuple[pa.Table, Errors]:
    """Read one file.

    Args:
        file: parquet, or a JSON list or JSON lines of rows or of records, gzip-compressed or not.
        of_records: makes a table of the values of a file that holds records.
        loose: columns whose values may differ in shape from row to row. Where no Arrow type fits all, they become JSON
            text, which their readers accept too.

    Returns:
        The table with one row a row or value of the file, and the rows that cannot be used.

    Raises:
        ValueError: the file cannot be read, is damaged or is empty; the message names it.
    """
    if file.endswith(".parquet"):
        try:
            return _stored(pq.ParquetFile(file).read()), {}
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: cannot be read as parquet ({error}): write it again") from error
    if not file.endswith(JSON_ENDINGS):
        raise ValueError(f"{file}: cannot be read: give a file ending in .parquet, {', '.join(JSON_ENDINGS)}")
    values = list(read_json(file))
    if damage := next((v for v in values[-1:] if isinstance(v, RowError) and v.reason == DAMAGE), None):
        raise ValueError(f"{file}: {damage}: fetch or write it again")
    if not values:
        raise ValueError(f"{file}: holds no rows: give JSON, a list or one object a line")
    if any(map(is_record, values)):
        return of_records(values)
    return rows_table(values, loose)


def read_json(file: str) -> Iterator[Any]:
    """Read the values of a JSON file, as `reading.read_values` does.

    Args:
        file: a JSON list or JSON lines, gzip-compressed or not; its content decides, not its name.

    Yields:
        Each value; for one that cannot be read, the `RowError` that says why.
    """
    return (raw.value for raw in read_values(Path(file)))


def is_record(value: Any) -> bool:
    """Return whether a JSON value is a record rather than a row of verl's columns.

    >>> is_record({"problem": "How many?", "path": "a.mp4"}), is_record({"prompt": [], "reward_model": {}})
    (True, False)
    """
    return isinstance(value, Mapping) and "problem" in value and "prompt" not in value


def rows_table(values: Sequence[Any], loose: Collection[str]) -> tuple[pa.Table, Errors]:
    """Make a table of rows that were read from JSON.

    Args:
        values: mappings from columns to values; a `RowError` stands for a value that could not be read.
        loose: see `read_table`.

    Returns:
        The table and the rows that cannot be used, because they are not mappings, hold text that is not Unicode, or
        have a column of another type than most rows.

    >>> table, errors = rows_table([{"a": 1}, {"a": "x"}, {"a": 2}, 5], loose=())
    >>> table.to_pylist(), sorted(errors)
    ([{'a': 1}, {'a': None}, {'a': 2}, {'a': None}], [1, 3])
    """
    errors: Errors = {}
    rows: list[dict[str, Any]] = []
    for number, value in enumerate(values):
        try:
            if isinstance(value, RowError):
                raise value
            if not isinstance(value, dict):
                kind = type(value).__name__
                raise RowError("", "unreadable record", f"the row is a {kind}: it must be a JSON object")
            check_values(value)
            rows.append(value)
        except RowError as error:
            errors[number] = error.with_traceback(None)
            rows.append({})
    names = dict.fromkeys(chain.from_iterable(rows))
    columns = {name: _column(name, [row.get(name) for row in rows], name in loose, errors) for name in names}
    return pa.table(columns), errors


def joined(tables: Sequence[pa.Table], files: Sequence[Any], loose: Collection[str] = ()) -> pa.Table:
    """Join the tables of several files; a column may be missing in some.

    Args:
        tables: results of `read_table`.
        files: names of the files for errors.
        loose: columns that become JSON text where their types differ between files.

    Raises:
        ValueError: a column has types that do not fit together; the message names the files.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        with suppress(pa.ArrowException, TypeError, ValueError):  # TypeError: JSON has no bytes
            return pa.concat_tables([_loosened(table, loose) for table in tables], promote_options="permissive")
        raise ValueError(
            f"{', '.join(map(str, files))}: their columns do not fit together ({error}): give a column one type in all "
            "files"
        ) from error


def _loosened(table: pa.Table, loose: Collection[str]) -> pa.Table:
    for name in table.schema.names:
        if name in loose:
            number = table.schema.get_field_index(name)
            table = table.set_column(number, name, _texts(table[name].to_pylist()))
    return table


def rows_of(dataset: Any) -> Iterator[dict[str, Any] | RowError]:
    """Yield the rows of a `datasets.Dataset`; for a row that Arrow cannot convert, the error that says why."""
    for start in range(0, len(dataset), BATCH):
        numbers = range(start, min(start + BATCH, len(dataset)))
        try:
            columns = dataset[numbers.start : numbers.stop]
            yield from [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        except Exception:  # text that is not UTF-8, a date out of range: read one by one to find the row
            yield from (_row(dataset, number) for number in numbers)


def _row(dataset: Any, number: int) -> dict[str, Any] | RowError:
    try:
        row: dict[str, Any] = dataset[number]
        return row
    except UnicodeDecodeError as error:
        return RowError("", "invalid UTF-8", f"it holds bytes that are not UTF-8 ({error}): repair or drop it")
    except Exception as error:
        return RowError("", "unreadable record", f"it cannot be read ({type(error).__name__}: {error}): drop it")


def _stored(table: pa.Table) -> pa.Table:
    """Remove what makes readers decode a table: library metadata, extension types, dictionaries."""
    table = table.replace_schema_metadata(None)
    for number, field in enumerate(table.schema):
        column = table.column(number)
        if isinstance(field.type, pa.BaseExtensionType):
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], field.type.storage_type)
        elif pa.types.is_dictionary(field.type):
            column = column.cast(field.type.value_type)
        else:
            continue
        table = table.set_column(number, field.name, column)
    return table


def _column(name: str, values: list[Any], loose: bool, errors: Errors) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        if loose:
            return _texts(values)
    return _typed_as_most(name, values, errors)


def _texts(values: Iterable[Any]) -> pa.Array:
    """Make a text column of any values: those that are not text become JSON."""
    texts = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.array(texts, pa.string())


def _typed_as_most(name: str, values: list[Any], errors: Errors) -> pa.Array:
    """Make a column of the type that most rows have; the other rows become errors."""
    groups: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        try:
            groups.setdefault(str(pa.array([value]).type), []).append(number)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            groups.setdefault("", []).append(number)
    kept: list[Any] = [None] * len(values)
    examples: list[Any] = []
    for kind, numbers in sorted(groups.items(), key=lambda group: -len(group[1]) if group[0] else 0):
        example = values[numbers[0]]
        try:
            if not kind:
                raise TypeError("no type of Arrow")
            pa.array([*examples, example])
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            for number in numbers:
                what = f"field {name} is {shown(values[number])}, of another type than in most rows"
                errors.setdefault(
                    number, RowError(name, "wrong columns", f"{what}: write it as there, or drop the row")
                )
            continue
        examples.append(example)
        for number in numbers:
            kept[number] = values[number]
    return pa.array(kept)
