# SPDX-License-Identifier: Apache-2.0
"""Files of rows or records as Arrow tables: parquet or JSON, in which a bad row costs itself alone.

Hugging Face features are read as what they store (`bytes` and `path`): nothing is decoded while a table is loaded.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_p2r.data.columns import ENDINGS, is_record, read_records
from verl_p2r.data.errors import RowError
from verl_p2r.data.reading import DAMAGE
from verl_p2r.data.values import check_values, shown

BATCH = 16  # rows that are made Python objects at a time: each may hold an image

Errors = dict[int, RowError]
"""Row → why it cannot be used; its columns are all None."""


def read_table(
    file: str, of_records: Callable[[list[Any]], tuple[pa.Table, Errors]], loose: Collection[str]
) -> tuple[pa.Table, Errors]:
    """Read a file.

    Args:
        file: parquet, or a JSON list or JSON lines of rows or of question records, gzip-compressed or not.
        of_records: makes a table of the values of a file that holds records.
        loose: columns whose values may have different shapes in different rows of JSON: they become JSON texts where
            Arrow has no type for all. Their readers take texts.

    Returns:
        The table, one row for each row or value of the file; and the rows that cannot be used.

    Raises:
        ValueError: naming the file, which cannot be read, is damaged or empty.
    """
    if file.endswith(".parquet"):
        try:
            return _stored(pq.ParquetFile(file).read()), {}
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: cannot be read as parquet ({error}): write it again") from error
    if not file.endswith(ENDINGS):
        raise ValueError(f"{file}: cannot be read: give a file ending in .parquet, {', '.join(ENDINGS)}")
    values = list(read_records(file))
    if damage := next((v for v in values[-1:] if isinstance(v, RowError) and v.reason == DAMAGE), None):
        raise ValueError(f"{file}: {damage}: fetch or write it again")
    if not values:
        raise ValueError(f"{file}: holds no rows: give JSON, a list or one object a line")
    if any(map(is_record, values)):
        return of_records(values)
    return rows_table(values, loose)


def rows_table(values: Sequence[Any], loose: Collection[str]) -> tuple[pa.Table, Errors]:
    """Make a table of rows from JSON.

    Args:
        values: mappings from columns to values; a `RowError` stands for one that could not be read.
        loose: see `read_table`.

    Returns:
        The table and the rows that cannot be used: they are not mappings, hold text that is not Unicode, or have a
        column of another type than most rows.

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
    """Put the tables of several files together; a column may be missing in some.

    Args:
        tables: as `read_table` gives them.
        files: their names, for errors.
        loose: columns that become JSON text where the files' types of them do not fit together.

    Raises:
        ValueError: naming the files, in which a column has types that do not fit together.
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
    """Give the rows of a `datasets.Dataset` one by one; for a row that Arrow cannot convert, the error that says so."""
    for start in range(0, len(dataset), BATCH):
        numbers = range(start, min(start + BATCH, len(dataset)))
        try:
            columns = dataset[numbers.start : numbers.stop]
            yield from [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        except Exception:  # of a text that is not UTF-8, a date out of range …: one by one, to find the row
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
    """A table without what makes its readers decode: the metadata of libraries, extension types, dictionaries."""
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
    """A column of any values as texts: JSON where they are not texts already."""
    texts = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.array(texts, pa.string())


def _typed_as_most(name: str, values: list[Any], errors: Errors) -> pa.Array:
    """The column in the type that most rows have; the others become errors."""
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
