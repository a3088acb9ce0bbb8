# SPDX-License-Identifier: Apache-2.0
"""Video-R1's evaluation files (`Video-R1/Video-R1-eval`), unchanged: the item set of the paper's numbers."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_tools.evaluate.adapters.base import Adapter, Download, Item, rows_of
from verl_p2r.accuracy import answer_text
from verl_p2r.data.fields import options_of
from verl_p2r.evaluation import BENCHMARKS, Protocol
from verl_p2r.evaluation.protocol import canonical

_FILE = re.compile(r"(?:eval_)?(\w+?)(?:_eval)?\.jsonl?", re.IGNORECASE)


def benchmark_of(file: Path) -> str:
    """Return the benchmark that a file of Video-R1's holds, by its name, such as `eval_mvbench.json`.

    Raises:
        ValueError: its name is not that of a benchmark.
    """
    match = _FILE.fullmatch(file.name)
    name = canonical(match[1]) if match else ""
    if name not in BENCHMARKS:
        raise ValueError(f"{file}: its name is not that of a benchmark: name a file such as eval_mvbench.json")
    return name


def items(source: Download, protocol: Protocol) -> Iterator[Item]:
    """Read one of its JSON files; paths are relative to the media root."""
    source.read.append(source.folder)
    for number, row in enumerate(rows_of(source.folder)):
        path = row["path"].removeprefix("./")
        yield Item(
            id=str(row.get("problem_id", number)),
            question=row["problem"],
            problem_type=row["problem_type"],
            solution=answer_text(row["solution"]),
            path=path,
            question_type=str(row.get("original_question_type") or row["problem_type"]),
            options=tuple(options_of(row.get("options"))),
        )


def adapter_of(file: Path) -> Adapter:
    """Return the adapter for one of its files; the expected number of items is not known."""
    return replace(ADAPTER, name=benchmark_of(file))


ADAPTER = Adapter(
    name="video_r1",
    title="Video-R1-eval",
    hub="Video-R1/Video-R1-eval",
    licence="Apache-2.0 for its conversions; each benchmark's own terms for the rest",
    counts={},
    items=items,
)
