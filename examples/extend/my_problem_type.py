# SPDX-License-Identifier: Apache-2.0
"""Yes-or-no questions as a problem type that the package scores: multiple choice with two options.

python examples/extend/my_problem_type.py yes_no.jsonl mine.jsonl
verl-p2r-data to-parquet mine.jsonl --kind rl --out data/mine --media-root media
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

OPTIONS = ["A. yes", "B. no"]


def as_multiple_choice(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rewrite records whose `problem_type` is `yes-no`; all others stay as they are.

    Raises:
        ValueError: a solution is neither yes nor no.
    """
    for number, record in enumerate(records, start=1):
        if record.get("problem_type") != "yes-no":
            yield record
            continue
        word = str(record["solution"]).strip().lower()
        if word not in ("yes", "no"):
            raise ValueError(f"record {number}: solution is {word!r}: give yes or no")
        letter = "A" if word == "yes" else "B"
        yield {**record, "problem_type": "multiple choice", "options": OPTIONS, "solution": letter}


def main(source: Path, target: Path) -> None:
    """Rewrite a file of JSON lines."""
    records = (json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip())
    target.write_text("".join(json.dumps(record) + "\n" for record in as_multiple_choice(records)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
