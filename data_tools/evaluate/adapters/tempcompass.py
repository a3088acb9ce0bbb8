# SPDX-License-Identifier: Apache-2.0
"""TempCompass (arXiv 2403.00476): four types of questions about time, each asked as multiple choice.

Yes and no become options. For captioning, the multiple choice question that its judge answers from a caption is asked
about the video itself, as Video-R1 seems to do.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from data_tools.evaluate.adapters.base import CHOICE, Adapter, Download, Item, lettered, rows_of
from verl_p2r.evaluation import Protocol

COUNTS = {"multi-choice": 1580, "yes_no": 2453, "caption_matching": 1503, "captioning": 2004}
FIELDS = ("video_id", "question", "answer", "dim", "mc_question", "mc_answer")
_LABEL = re.compile(r"^(?:[A-Z][.)]|(?:Option|Caption|Sentence) \w+:)\s*")


def items(source: Download, protocol: Protocol) -> Iterator[Item]:
    """Read the hub's `{type}/test-*.parquet`, or the `questions/{type}.json` of its repository."""
    for kind in COUNTS:
        for number, row in enumerate(_rows(source, kind)):
            question, answer = (row[f"mc_{name}" if kind == "captioning" else name] for name in ("question", "answer"))
            question, *options = [line.strip() for line in question.strip().split("\n") if line.strip()]
            if kind == "yes_no":
                question, options = "\n".join([question, *options]), ["yes", "no"]
            texts = [_LABEL.sub("", option, count=1) for option in options]
            place = _place(answer, options, texts)
            if place is None:
                raise ValueError(
                    f"TempCompass {kind} {number} ({row['video_id']}): the answer {answer!r} is not one of its options"
                )
            yield Item(
                id=f"{kind}/{number}",
                question=question,
                problem_type=CHOICE,
                solution=chr(ord("A") + place),
                path=f"videos/{row['video_id']}.mp4",
                question_type=kind,
                options=lettered(texts),
                video_id=str(row["video_id"]),
                categories={"dimension": row["dim"]},
            )


def _rows(source: Download, kind: str) -> Iterator[dict[str, Any]]:
    files = source.files(f"{kind}/test*.parquet", f"questions/{kind}.json", f"{kind}.json")
    if files[0].suffix == ".parquet":
        for file in files:
            yield from rows_of(file, FIELDS)
        return
    for video, dimensions in json.loads(files[0].read_text(encoding="utf-8")).items():
        for dimension, rows in dimensions.items():
            for row in rows:
                yield {**row, "video_id": video, "dim": dimension}


def _place(answer: str, options: list[str], texts: list[str]) -> int | None:
    """Return the place of the option that an answer names: in full, by its text, or by its letter."""
    answer = answer.strip()
    bare = _LABEL.sub("", answer, count=1).casefold()
    for known, wanted in ((options, answer), ([text.casefold() for text in texts], bare)):
        if known.count(wanted) == 1:
            return known.index(wanted)
    letter = ord(answer[:1] or "?") - ord("A")
    return letter if 0 <= letter < len(options) and answer[1:2] in ("", ".", ")") else None


ADAPTER = Adapter(
    name="tempcompass",
    title="TempCompass",
    hub="lmms-lab/TempCompass",
    licence="CC BY-NC 4.0",
    counts=COUNTS,
    items=items,
)
