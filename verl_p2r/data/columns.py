# SPDX-License-Identifier: Apache-2.0
"""Question records of Video-R1 and of the VideoP2R release: read from JSON, turned into verl's columns.

A record names one medium by its path and asks one question. In the VideoP2R release's RL file every value is text,
lists included; nothing here ever evaluates a text.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from verl_p2r.accuracy import problem_types
from verl_p2r.data.errors import RowError
from verl_p2r.data.fields import MEDIA_FIELDS, facts_of, media_of, options_of
from verl_p2r.data.prompt_template import PromptTemplate as PromptTemplate
from verl_p2r.data.reading import read_values
from verl_p2r.data.responses import response_of
from verl_p2r.data.truths import check_truth
from verl_p2r.data.values import check_values, is_unset, plain, shown

ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")

_TYPES = {int: pa.int64(), float: pa.float64()}


def _elements(kind: str) -> pa.ListType:
    fields = {name: _TYPES[number] for name, number in MEDIA_FIELDS[kind].items()}
    return pa.list_(pa.struct({kind: pa.string(), **fields}))


# verl's columns; a row has images or videos, and None in place of the other, as of all else that is not set.
SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "images": _elements("image"),
        "videos": _elements("video"),
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

SFT_SCHEMA = pa.schema(
    [
        pa.field("messages", SCHEMA.field("prompt").type),
        *(SCHEMA.field(name) for name in ("images", "videos", "data_source", "extra_info")),
    ]
)

NO_RESPONSE = (
    "there is no response in the template, nor an observation and a process to make one of: generate it, or "
    "export for rl"
)

_RESPONSE = ("output", "process", "observation")
_PLACEHOLDERS = re.compile("<(?:image|video|audio)>")  # verl puts media where they stand


class Question(NamedTuple):
    """A record's question, validated.

    Args:
        problem: the question, without its options.
        problem_type: one of `accuracy.problem_types()`.
        kind: of its medium, `image` or `video`.
        path: of its medium, as the record has it.
        solution: the ground truth.
        options: of a multiple choice question.
        data_source: never blank.
        problem_id: None when the record has none.
        media: what `record_fields.media_of` reads.
        facts: what `record_fields.facts_of` reads.
    """

    problem: str
    problem_type: str
    kind: str
    path: str
    solution: str
    options: list[str]
    data_source: str
    problem_id: str | None
    media: dict[str, Any]
    facts: list[dict[str, Any]] | None


def read_records(path: str) -> Iterator[Any]:
    """Read the values of a file of JSON, as `reading.read_values` does.

    Args:
        path: of a JSON list or of JSON lines, gzip-compressed or not; its content tells which.

    Yields:
        Each value; for one that cannot be read, the `RowError` that says so.
    """
    return (raw.value for raw in read_values(Path(path)))


def is_record(value: Any) -> bool:
    """Whether a value read from JSON is a question record rather than a row of verl's columns.

    >>> is_record({"problem": "How many?", "path": "a.mp4"}), is_record({"prompt": [], "reward_model": {}})
    (True, False)
    """
    return isinstance(value, Mapping) and "problem" in value and "prompt" not in value


def read_question(record: Any) -> Question:
    """Validate a record's question.

    Args:
        record: fields `problem`, `problem_type`, `data_type`, `path`, `solution`, and for multiple choice `options`;
            `data_source`, `problem_id`, `media` (see `media_of`) and `facts` (see `facts_of`) if there are any;
            further ones are not read. A `RowError` in its place is raised.

    Edge rules [ours]:
        A solution that is a number becomes text. A blank `data_source` becomes the first folder of the path. A ground
        truth that no answer can match is refused, see `truths.check_truth`.

    Raises:
        RowError: a field is missing or is not what it should be.
    """
    if isinstance(record, RowError):
        raise record
    if not isinstance(record, Mapping):
        raise RowError("", "unreadable record", f"the record is a {type(record).__name__}: it must be a JSON object")
    check_values(record)
    problem = _text(record, "problem")
    problem_type = record.get("problem_type")
    if problem_type not in problem_types():
        raise RowError(
            "problem_type",
            "unknown problem type",
            f"field problem_type is {shown(problem_type)}: give one of {', '.join(problem_types())}",
        )
    kind = record.get("data_type")
    if kind not in ("image", "video"):
        raise RowError("data_type", "unknown data type", f"field data_type is {shown(kind)}: give image or video")
    path, solution = _text(record, "path"), _text(record, "solution")
    question = Question(
        problem=problem,
        problem_type=problem_type,
        kind=kind,
        path=path,
        solution=solution,
        options=options_of(record.get("options")),
        data_source=(_label(record, "data_source") or "").strip() or _first_folder(path),
        problem_id=_label(record, "problem_id"),
        media=media_of(record.get("media"), kind),
        facts=facts_of(record.get("facts")),
    )
    check_truth(problem_type, solution, question.options)
    return question


def columns_of(record: Any, index: int, template: PromptTemplate) -> dict[str, Any]:
    """Turn a record into verl's columns.

    Args:
        record: what `read_question` reads.
        index: the record's number in its file, from 0.
        template: the prompt's template.

    Returns:
        A row of `SCHEMA`; see `question_columns`.

    Raises:
        RowError: a field is missing or is not what it should be.

    >>> record = {"problem": "Which?", "problem_type": "multiple choice", "options": "['A. red', 'B. blue']",
    ...           "data_type": "video", "path": "./STAR/a.mp4", "solution": "<answer>A</answer>"}
    >>> row = columns_of(record, 0, PromptTemplate("{question}", {}))
    >>> row["prompt"][0]["content"], row["videos"], row["data_source"]
    ('<video>Which?Options:\\nA. red\\nB. blue\\n', [{'video': './STAR/a.mp4'}], 'STAR')
    """
    return question_columns(read_question(record), index, template)


def question_columns(question: Question, index: int, template: PromptTemplate) -> dict[str, Any]:
    """Turn a validated question into verl's columns.

    Args:
        question: what `read_question` returns.
        index: the record's number in its file, from 0.
        template: the prompt's template.

    Returns:
        A row of `SCHEMA`. The user's turn is the medium, then the question in the template. The question is
        `problem`, then for multiple choice `Options:` and one option a line (Video-R1's assembly).

    Edge rules [ours]:
        `<image>`, `<video>` and `<audio>` inside the question are removed, because verl reads them as media. Options
        without letters are not listed again where the problem ends with them, one a line behind `A. `, `B. ` and so on.
    """
    text, options, kind = question.problem, question.options, question.kind
    if question.problem_type == "multiple choice" and options and not _lists(text, options):
        text += "Options:\n" + "".join(f"{option}\n" for option in options)
    text = _PLACEHOLDERS.sub("", text)
    media = [{kind: question.path, **question.media}]
    return {
        "data_source": question.data_source,
        "prompt": [{"role": "user", "content": f"<{kind}>{template.render(text, question.problem_type)}"}],
        "images": media if kind == "image" else None,
        "videos": media if kind == "video" else None,
        "reward_model": {"style": "rule", "ground_truth": question.solution},
        "extra_info": {
            "index": index,
            "question": text,
            "options": options,
            "problem_type": question.problem_type,
            "problem_id": str(index) if question.problem_id is None else question.problem_id,
            "facts": question.facts,
        },
    }


def sft_columns_of(record: Any, index: int, template: PromptTemplate) -> dict[str, Any]:
    """Turn a record with a response into the columns that SFT reads.

    Args:
        record: as for `columns_of`; its response stands in `output`, `process` or `observation`, see
            `responses.response_of`.
        index: the record's number in its file, from 0.
        template: the prompt's template.

    Returns:
        A row of `SFT_SCHEMA`: `messages`, which end with the response, and the columns of RL beside the prompt's.

    Raises:
        RowError: a field is missing or is not what it should be, or there is no response in the template.
    """
    columns = columns_of(record, index, template)
    parts = {name: value if isinstance(value := record.get(name), str) else None for name in _RESPONSE}
    response = response_of(**parts, solution=columns["reward_model"]["ground_truth"])
    if response is None:
        raise RowError("output", "no response", f"field output is {shown(record.get('output'))}: {NO_RESPONSE}")
    messages = [*columns["prompt"], {"role": "assistant", "content": response}]
    return {"messages": messages} | {name: columns[name] for name in SFT_SCHEMA.names[1:]}


def to_table(
    records: Iterable[Any],
    template: PromptTemplate,
    batch: int = 10_000,
    make: Callable[[Any, int, PromptTemplate], dict[str, Any]] = columns_of,
    schema: pa.Schema = SCHEMA,
) -> tuple[pa.Table, dict[int, RowError]]:
    """Turn records into a table of verl's columns.

    Args:
        records: as `read_records` yields them.
        template: the prompt's template.
        batch: how many records are held as Python objects at a time.
        make: turns a record into a row: `columns_of`, or for SFT `sft_columns_of`.
        schema: of these rows.

    Returns:
        The table, one row a record; and the rows that could not be converted, whose columns are all None, with why.
        Where no record has facts, there is no column of them, so that the table fits to rows whose facts are texts.
    """
    errors: dict[int, RowError] = {}
    batches: list[pa.RecordBatch] = []
    rows: list[dict[str, Any]] = []
    for index, record in enumerate(records):
        try:
            rows.append(make(record, index, template))
        except RowError as error:
            errors[index] = error.with_traceback(None)  # which would keep the batch in memory
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
    own = [field for field in schema.field(place).type if field.name != "facts"]
    return schema.set(place, pa.field("extra_info", pa.struct(own)))


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool) and not is_unset(value):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        reason = "no ground truth" if field == "solution" else f"no {field}"
        raise RowError(field, reason, f"field {field} is {shown(value)}: give a text, or drop the record")
    return value


def _label(record: Mapping[str, Any], field: str) -> str | None:
    """A name or a number; None where it is not set."""
    value = record.get(field)
    if type(value) is str or value is None:
        return None if is_unset(value) else value
    value = plain(value)
    if is_unset(value):
        return None
    if not isinstance(value, str | int | float):
        raise RowError(field, f"bad {field}", f"field {field} is {shown(value)}: give a text or a number")
    return str(value)


def _lists(problem: str, options: list[str]) -> bool:
    """Whether a problem ends with its options, one a line behind its letter."""
    return problem.endswith("".join(f"\n{chr(65 + i)}. {option}" for i, option in enumerate(options)))


def _first_folder(path: str) -> str:
    return next((part for part in path.split("/")[:-1] if part not in ("", ".", "..")), "unknown")
