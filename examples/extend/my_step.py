# SPDX-License-Identifier: Apache-2.0
"""A data step of your own: drops records whose question is longer than you want.

python examples/extend/my_step.py mine.jsonl --out data/short --most 40
verl-p2r-data to-parquet data/short --kind rl --out data/mine --media-root media
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from data_tools.records.files import files_of
from data_tools.records.left_out import Dropped
from data_tools.steps.run import StepReport, run_step
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Record


def short_questions(files: list[Path], out: Path, most: int) -> StepReport:
    """Keep the records whose question has at most `most` words.

    Args:
        files: files of records.
        out: the folder to write; it appears whole or not at all.
        most: words.
    """

    def transform(records: Iterable[Record]) -> Iterator[tuple[Record, RowError | None]]:
        for record in records:
            words = len(record.problem.split())
            long = Dropped("problem", "question too long", f"its question has {words} words") if words > most else None
            yield record, long

    return run_step("short_questions", files, out, transform, settings={"most": most}, max_reject_share=0.01)


def main(inputs: list[str], out: Annotated[Path, typer.Option()], most: Annotated[int, typer.Option(min=1)] = 40):
    """Run the step and print its account."""
    report = short_questions(files_of(inputs), out, most)
    print(f"{report.read} records read, {report.written} kept in {out}; dropped: {dict(report.dropped)}")
    raise typer.Exit(int(report.failed))


if __name__ == "__main__":
    typer.run(main)
