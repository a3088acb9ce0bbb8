# SPDX-License-Identifier: Apache-2.0
"""VideoMMMU (arXiv 2501.13826): lectures, in the tracks Perception, Comprehension and Adaptation.

In Adaptation, the question's picture is the last frame of the video, which sampling always takes.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data_tools.evaluate.adapters.base import CHOICE, FREE, Adapter, Download, Item, lettered
from verl_p2r.answers.numbers import read_number
from verl_p2r.data.fields import options_of
from verl_p2r.evaluation import Protocol

ADAPTATION = "Adaptation"
TRACKS = ("Perception", "Comprehension", ADAPTATION)
FIELDS = ("id", "question", "options", "answer", "question_type")  # the video's last frame shows the image
DISCIPLINES = {
    "Art": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power"),
        *("Materials", "Mechanical_Engineering"),
    ),
    "Humanities": ("History", "Literature", "Psychology", "Sociology"),
    "Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy"),
        "Public_Health",
    ),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
}
_DISCIPLINE = {subject: discipline for discipline, subjects in DISCIPLINES.items() for subject in subjects}
_IMAGE_MARK = re.compile(r"\s*<image \d+>\s*")
_NOTES = {
    "Adaptation": "Apply what the video teaches. This question's picture is the last frame of the video.\n",
    "Perception": "The quiz in the video's last frame is not part of this question; ignore it.\n",
    "Comprehension": "The quiz in the video's last frame is not part of this question; ignore it.\n",
}


def items(source: Download, protocol: Protocol) -> Iterator[Item]:
    """Read `{track}/test-*.parquet`; the videos are `{discipline}/{id}.mp4`."""
    for track in TRACKS:
        note = _NOTES[track] if protocol.last_frame_note else ""
        for row, discipline in _rows(source, track):
            yield _item(row, track, discipline, f"{discipline}/{row['id']}.mp4", note)


def question_only_items(source: Download, protocol: Protocol) -> Iterator[Item]:
    """Read Adaptation, with `question_only/{id}_image.mp4`, two seconds of the question's picture, as its videos."""
    for row, discipline in _rows(source, ADAPTATION):
        yield _item(row, ADAPTATION, discipline, f"question_only/{row['id']}_image.mp4", "")


def _rows(source: Download, track: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the rows of a track with their disciplines."""
    for row in source.rows(f"{track}/test*.parquet", f"{track}.jsonl", fields=FIELDS):
        subject = "_".join(row["id"].split("_")[1:-1])
        if subject not in _DISCIPLINE:
            raise ValueError(f"VideoMMMU {track} {row['id']}: its subject {subject!r} is unknown")
        yield row, _DISCIPLINE[subject]


def _item(row: dict[str, Any], track: str, discipline: str, path: str, note: str) -> Item:
    question = _IMAGE_MARK.sub(" ", row["question"]).strip()
    options = lettered(options_of(row["options"]))
    answer = str(row["answer"]).strip()
    choice = bool(options) and len(answer) == 1 and 0 <= ord(answer) - ord("A") < len(options)
    return Item(
        id=f"{track}/{row['id']}",
        question=note + question,
        problem_type=CHOICE if choice else FREE if read_number(answer) is None else "numerical",
        solution=answer,
        path=path,
        question_type=track,
        options=options if choice else (),
        video_id=row["id"],
        categories={"discipline": discipline},
    )


ADAPTER = Adapter(
    name="video_mmmu",
    title="VideoMMMU",
    hub="lmms-lab/VideoMMMU",
    licence="none stated",
    counts=dict.fromkeys(TRACKS, 300),
    items=items,
)

QUESTION_ONLY = replace(
    ADAPTER,
    name="video_mmmu_question_only",
    title="VideoMMMU without lectures",
    counts={ADAPTATION: 300},
    items=question_only_items,
)
"""Adaptation without its lectures: the accuracy before, for Δknowledge."""
