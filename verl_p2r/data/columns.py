# SPDX-License-Identifier: Apache-2.0
"""verl's parquet columns, made of records once a file is written or read.

A row of RL holds the prompt, the medium, the ground truth and what the reward needs; a row of SFT holds the messages,
which end with the response.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from verl_p2r.data.errors import RowError
from verl_p2r.data.fields import MEDIA_FIELDS
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record
from verl_p2r.data.values import shown

_TYPES = {int: pa.int64(), float: pa.float64()}


def _media_type(kind: str) -> pa.ListType:
    fields = {name: _TYPES[number] for name, number in MEDIA_FIELDS[kind].items()}
    return pa.list_(pa.struct({kind: pa.string(), **fields}))


SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "images": _media_type("image"),
        "videos": _media_type("video"),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
        "extra_info": pa.struct(
            {
                "index": pa.int64(),
                "question": pa.string(),
                "options": pa.list_(pa.string()),
                "problem_type": pa.string(),
                "problem_id": pa.string(),
                "facts": pa.list_(pa.struct({"state": pa.string(), "not": pa.list_(pa.string())})),
            }
        ),
    }
)
"""Columns of RL. Of `images` and `videos` one is None, as is every field that a record does not set."""

SFT_SCHEMA = pa.schema(
    [
        pa.field("messages", SCHEMA.field("prompt").type),
        *(SCHEMA.field(name) for name in ("images", "videos", "data_source", "extra_info")),
    ]
)
"""Columns of SFT."""

MakeRow = Callable[[Record, int, PromptTemplate], dict[str, Any]]
"""Makes the row of a record, given its number in the file and the prompt's template."""


def rl_columns(record: Record, index: int, template: PromptTemplate, root: Path | None = None) -> dict[str, Any]:
    """Make a row of RL.

    Args:
        record: the record.
        index: number of the row in its file, from 0.
        template: template of the prompt.
        root: folder to put in front of the medium's path; None leaves the path as it is.

    Returns:
        A row of `SCHEMA`. The user's turn is the medium, followed by the question in the template.

    >>> record = Record("7", "Which?", "multiple choice", "video", "STAR/a.mp4", "A", ("A. red", "B. blue"), "STAR")
    >>> row = rl_columns(record, 0, PromptTemplate("{question}", {}))
    >>> row["prompt"][0]["content"], row["videos"], row["data_source"]
    ('<video>Which?Options:\\nA. red\\nB. blue\\n', [{'video': 'STAR/a.mp4'}], 'STAR')
    """
    kind = record.data_type
    media = [{kind: str(root / record.path) if root else record.path, **record.media}]
    prompt = f"<{kind}>{template.render(record.question, record.problem_type)}"
    return {
        "data_source": record.data_source,
        "prompt": [{"role": "user", "content": prompt}],
        "images": media if kind == "image" else None,
        "videos": media if kind == "video" else None,
        "reward_model": {"style": "rule", "ground_truth": record.solution},
        "extra_info": {
            "index": index,
            "question": record.question,
            "options": list(record.options),
            "problem_type": record.problem_type,
            "problem_id": record.problem_id,
            "facts": list(record.facts) or None,
        },
    }


def sft_columns(record: Record, index: int, template: PromptTemplate, root: Path | None = None) -> dict[str, Any]:
    """Make a row of SFT.

    Args:
        record: a record with a response.
        index: number of the row in its file, from 0.
        template: template of the prompt.
        root: folder to put in front of the medium's path; None leaves the path as it is.

    Returns:
        A row of `SFT_SCHEMA`: `messages`, which end with the response, and the columns that RL has too.

    Raises:
        RowError: the record has no response in the template.
    """
    response = record.response
    if response is None:
        raise RowError(
            "output",
            "no response",
            f"field output is {shown(record.output)}: there is no response in the template, and no observation and "
            "process to make one of: generate it, or export for rl",
        )
    columns = rl_columns(record, index, template, root)
    messages = [*columns["prompt"], {"role": "assistant", "content": response}]
    return {"messages": messages} | {name: columns[name] for name in SFT_SCHEMA.names[1:]}


def to_table(
    values: Iterable[Any],
    template: PromptTemplate,
    batch: int = 10_000,
    make_row: MakeRow = rl_columns,
    schema: pa.Schema = SCHEMA,
) -> tuple[pa.Table, dict[int, RowError]]:
    """Read the JSON values of a file as records, and make a table of verl's columns.

    Args:
        values: from `tables.read_json`; a `RowError` stands for a value that could not be read.
        template: template of the prompt.
        batch: number of rows held as Python objects at a time.
        make_row: `rl_columns`, or `sft_columns` for SFT.
        schema: schema of the rows.

    Returns:
        The table with one row a value; and the rows that cannot be used, whose columns are all None, with the reason.
        If no record has facts, the table has no column of facts, so that it can be joined to one whose facts are texts.
    """
    errors: dict[int, RowError] = {}
    batches: list[pa.RecordBatch] = []
    rows: list[dict[str, Any]] = []
    for index, value in enumerate(values):
        try:
            rows.append(make_row(Record.parse(value, index=index, relative_path=False), index, template))
        except RowError as error:
            errors[index] = error.with_traceback(None)  # the traceback would keep the batch in memory
            rows.append({})
        if len(rows) == batch:
            batches.append(pa.RecordBatch.from_pylist(rows, schema=schema))
            rows = []
    batches.append(pa.RecordBatch.from_pylist(rows, schema=schema))
    table = pa.Table.from_batches(batches)
    facts = pc.struct_field(table["extra_info"], "facts")
    return (table.cast(_without_facts(schema)) if facts.null_count == len(facts) else table), errors


def _without_facts(schema: pa.Schema) -> pa.Schema:
    place = schema.get_field_index("extra_info")
    others = [field for field in schema.field(place).type if field.name != "facts"]
    return schema.set(place, pa.field("extra_info", pa.struct(others)))
