# SPDX-License-Identifier: Apache-2.0
"""Makes the folder of a run from replies that a test chooses, with the steps' own writers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import benchmark_files

from data_tools.evaluate.adapters import ADAPTERS
from data_tools.evaluate.prepare import prepare
from data_tools.evaluate.run import DEFAULTS, STEP
from data_tools.records.files import files_of
from data_tools.records.folders import whole_folder
from data_tools.steps.run import write_step
from verl_p2r.data.errors import RowError
from verl_p2r.data.prompt_template import PromptTemplate


def make_run(root: Path, replies: Mapping[str, str | None], name: str = "run", benchmark: str = "mmvu") -> Path:
    """Write a run over the first items of a benchmark.

    Args:
        root: folder for the benchmark, its prepared items and the run.
        replies: problem_id without the benchmark → reply; None if the item was lost.
        name: name of the run's folder.
        benchmark: name of the benchmark; each question type has as many items as there are replies.
    """
    prepared = root / "prepared" / benchmark
    if not prepared.exists():
        counts = dict.fromkeys(ADAPTERS[benchmark].counts, len(replies))
        benchmark_files.MAKERS[benchmark](root / benchmark, counts)
        prepare(benchmark, root / benchmark, prepared, partial=True)
    files: Sequence[Path] = files_of([prepared])

    def answered(records):
        for record in records:
            reply = replies.get(record.problem_id.partition("/")[2])
            lost = RowError("path", "missing file", "no such file") if reply is None else None
            extra = {**record.extra, "finish_reason": "stop", "completion_tokens": len((reply or "").split())}
            yield replace(record, output=reply, extra=extra), lost

    template = PromptTemplate.load(DEFAULTS.prompt_template)
    settings = replace(DEFAULTS, model="made").fingerprint(template)
    with whole_folder(root / name, files) as partial:
        write_step(STEP, files, partial, answered, settings=settings, max_reject_share=1.0)
    return root / name


def response(observation: str, think: str, answer: str) -> str:
    return f"<observation>{observation}</observation>\n<think>{think}</think>\n<answer>{answer}</answer>"
