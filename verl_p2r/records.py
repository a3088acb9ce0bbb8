# SPDX-License-Identifier: Apache-2.0
"""Question records of Video-R1 and of the VideoP2R release: read from JSON, turned into verl's columns.

A record names one medium by its path and asks one question. In the VideoP2R release's RL file every value is text,
lists included; nothing here ever evaluates a text.
"""

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from verl_p2r.accuracy import PROBLEM_TYPES
from verl_p2r.record_fields import MEDIA_FIELDS, facts_of, media_of, options_of
from verl_p2r.rows import RowError

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

_INFO = SCHEMA.get_field_index("extra_info")
_FACTLESS = SCHEMA.set(
    _INFO, pa.field("extra_info", pa.struct([own for own in SCHEMA.field(_INFO).type if own.name != "facts"]))
)

_PLACEHOLDERS = re.compile("<(?:image|video|audio)>")  # verl puts media where they stand
_SECTION = re.compile(r"^\[(" + "|".join(map(re.escape, PROBLEM_TYPES)) + r")\]\s*$", re.MULTILINE)
_SLOT = re.compile(r"\{(question|answer_form)\}")


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with slots for the question and for what the answer should look like.

    Args:
        body: text with the slots `{question}` and, if wanted, `{answer_form}`; other braces stay as they are.
        answer_forms: problem type → the text for `{answer_form}`.
    """

    body: str
    answer_forms: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, name: str = "prompt template") -> "PromptTemplate":
        """Read a template: the body, then one section for each problem type, headed by its name in brackets.

        Args:
            text: the file's text.
            name: how messages call it.

        Raises:
            ValueError: the body lacks `{question}`, or uses `{answer_form}` without a section for every problem type.

        >>> template = PromptTemplate.parse("{question} {answer_form}\\n[numerical]\\nA number.\\n[OCR]\\nText.\\n"
        ...     "[multiple choice]\\nA letter.\\n[free-form]\\nText.\\n[regression]\\nA number.\\n")
        >>> template.render("How many?", "numerical")
        'How many? A number.'
        """
        body, *sections = _SECTION.split(text)
        forms = {kind: form.strip() for kind, form in zip(sections[::2], sections[1::2], strict=True)}
        slots = set(_SLOT.findall(body))
        if "question" not in slots:
            raise ValueError(f"{name} lacks {{question}}: add it where the question belongs")
        missing = [kind for kind in PROBLEM_TYPES if not forms.get(kind)] if "answer_form" in slots else []
        if missing:
            heads = ", ".join(f"[{kind}]" for kind in missing)
            raise ValueError(f"{name} uses {{answer_form}} but has no text under {heads}: add each as a section")
        return cls(body.strip(), forms)

    @classmethod
    def load(cls, name: str) -> "PromptTemplate":
        """Read a template file.

        Args:
            name: one of the package's (`process_aware`), or the path of a text file.

        Raises:
            ValueError: there is no such template, or it lacks a slot or a section.
        """
        own = files("verl_p2r").joinpath(f"prompts/{name}.txt")
        path = own if own.is_file() else Path(name).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(
                f"prompt template {name!r} cannot be read ({error.strerror}): name a text file, or process_aware"
            ) from error
        return cls.parse(text, f"prompt template {name}")

    def render(self, question: str, problem_type: str) -> str:
        """The text of the user's turn behind the media."""
        values = {"question": question, "answer_form": self.answer_forms.get(problem_type, "")}
        return _SLOT.sub(lambda match: values[match[1]], self.body)  # one pass: a slot inside the question stays text


def read_records(path: str) -> Iterator[Any]:
    """Read the records of a JSON list or of JSON lines, gzip-compressed or not.

    Args:
        path: a file with one of `ENDINGS`.

    Yields:
        Each record; for a line of JSON lines that cannot be read, the `RowError` that says so.

    Raises:
        ValueError: naming the file, when a JSON list cannot be read.
    """
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        if path.removesuffix(".gz").endswith(".jsonl"):
            yield from (_line(line) for line in file if line.strip())
            return
        try:
            records = json.load(file)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(
                f"{path}: cannot be read as JSON ({error}): it must hold one list of records; write one record a line "
                "in a .jsonl file otherwise"
            ) from error
    if not isinstance(records, list):
        raise ValueError(f"{path}: holds a JSON {type(records).__name__}: it must hold one list of records")
    yield from records


def is_record(value: Any) -> bool:
    """Whether a value read from JSON is a question record rather than a row of verl's columns.

    >>> is_record({"problem": "How many?", "path": "a.mp4"}), is_record({"prompt": [], "reward_model": {}})
    (True, False)
    """
    return isinstance(value, Mapping) and "problem" in value and "prompt" not in value


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return RowError("", "unreadable record", f"the line is not JSON ({error}): repair or drop it")


def columns_of(record: Any, index: int, template: PromptTemplate) -> dict[str, Any]:
    """Turn a record into verl's columns.

    Args:
        record: fields `problem`, `problem_type`, `data_type`, `path`, `solution`, and for multiple choice `options`;
            `data_source`, `problem_id`, `media` (see `media_of`) and `facts` (see `facts_of`) if there are any;
            further ones are not read.
        index: the record's number in its file, from 0.
        template: the prompt's template.

    Returns:
        A row of `SCHEMA`. The user's turn is the medium, then the question in the template. The question is
        `problem`, then for multiple choice `Options:` and one option a line (Video-R1's assembly).

    Edge rules [ours]:
        `<image>`, `<video>` and `<audio>` inside the question are taken out, for verl reads them as media. A solution
        that is a number becomes text. A blank `data_source` becomes the first folder of the path. Options without
        letters are not listed again where the problem ends with them, one a line behind `A. `, `B. ` and so on.

    Raises:
        RowError: a field is missing or is not what it should be.

    >>> record = {"problem": "Which?", "problem_type": "multiple choice", "options": "['A. red', 'B. blue']",
    ...           "data_type": "video", "path": "./STAR/a.mp4", "solution": "<answer>A</answer>"}
    >>> row = columns_of(record, 0, PromptTemplate("{question}", {}))
    >>> row["prompt"][0]["content"], row["videos"], row["data_source"]
    ('<video>Which?Options:\\nA. red\\nB. blue\\n', [{'video': './STAR/a.mp4'}], 'STAR')
    """
    if isinstance(record, RowError):
        raise record
    if not isinstance(record, Mapping):
        raise RowError("", "unreadable record", f"the record is a {type(record).__name__}: it must be a JSON object")
    problem = _text(record, "problem")
    problem_type = record.get("problem_type")
    if problem_type not in PROBLEM_TYPES:
        raise RowError(
            "problem_type",
            "unknown problem type",
            f"field problem_type is {problem_type!r}: give one of {', '.join(PROBLEM_TYPES)}",
        )
    kind = record.get("data_type")
    if kind not in ("image", "video"):
        raise RowError("data_type", "unknown data type", f"field data_type is {kind!r}: give image or video")
    path, solution = _text(record, "path"), _text(record, "solution")
    options = options_of(record.get("options"))
    question = problem
    if problem_type == "multiple choice" and options and not _lists(problem, options):
        question += "Options:\n" + "".join(f"{option}\n" for option in options)
    question = _PLACEHOLDERS.sub("", question)
    media = [{kind: path, **media_of(record.get("media"), kind)}]
    return {
        "data_source": str(record.get("data_source") or "").strip() or _first_folder(path),
        "prompt": [{"role": "user", "content": f"<{kind}>{template.render(question, problem_type)}"}],
        "images": media if kind == "image" else None,
        "videos": media if kind == "video" else None,
        "reward_model": {"style": "rule", "ground_truth": solution},
        "extra_info": {
            "index": index,
            "question": question,
            "options": options,
            "problem_type": problem_type,
            "problem_id": str(record.get("problem_id", index)),
            "facts": facts_of(record.get("facts")),
        },
    }


def to_table(
    records: Iterable[Any], template: PromptTemplate, batch: int = 10_000
) -> tuple[pa.Table, dict[int, RowError]]:
    """Turn records into a table of verl's columns.

    Args:
        records: as `read_records` yields them.
        template: the prompt's template.
        batch: how many records are held as Python objects at a time.

    Returns:
        The table, one row a record; and the rows that could not be converted, whose columns are all None, with why.
        Where no record has facts, there is no column of them, so that the table fits to rows whose facts are texts.
    """
    errors: dict[int, RowError] = {}
    batches: list[pa.RecordBatch] = []
    rows: list[dict[str, Any]] = []
    for index, record in enumerate(records):
        try:
            rows.append(columns_of(record, index, template))
        except RowError as error:
            errors[index] = error.with_traceback(None)  # which would keep the batch in memory
            rows.append({})
        if len(rows) == batch:
            batches.append(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
            rows = []
    batches.append(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    table = pa.Table.from_batches(batches)
    facts = pc.struct_field(table["extra_info"], "facts")
    return (table.cast(_FACTLESS) if facts.null_count == len(facts) else table), errors


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        reason = "no ground truth" if field == "solution" else f"no {field}"
        raise RowError(field, reason, f"field {field} is {value!r}: give a text, or drop the record")
    return value


def _lists(problem: str, options: list[str]) -> bool:
    """Whether a problem ends with its options, one a line behind its letter."""
    return problem.endswith("".join(f"\n{chr(65 + i)}. {option}" for i, option in enumerate(options)))


def _first_folder(path: str) -> str:
    return next((part for part in path.split("/")[:-1] if part not in ("", ".", "..")), "unknown")
