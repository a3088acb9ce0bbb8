# SPDX-License-Identifier: Apache-2.0
"""Video-MME (arXiv 2405.21075), without subtitles."""

from collections.abc import Iterator

from data_tools.evaluate.adapters.base import CHOICE, Adapter, Download, Item, lettered
from verl_p2r.evaluation import Protocol

FIELDS = (
    *("video_id", "duration", "domain", "sub_category", "videoID", "question_id", "task_type", "question", "options"),
    "answer",
)


def items(source: Download, protocol: Protocol) -> Iterator[Item]:
    """Read `videomme/test-*.parquet`; the videos are `data/{videoID}` with one of three endings."""
    for row in source.rows("videomme/test-*.parquet", "test*.parquet", "test.jsonl", fields=FIELDS):
        paths = [f"{folder}{row['videoID']}{end}" for folder in ("data/", "") for end in (".mp4", ".MP4", ".mkv")]
        yield Item(
            id=str(row["question_id"]),
            question=row["question"],
            problem_type=CHOICE,
            solution=row["answer"],
            path=source.first_file(*paths),
            question_type=row["duration"],
            options=lettered(row["options"]),
            video_id=row["videoID"],
            categories={"domain": row["domain"], "task": row["task_type"]},
        )


ADAPTER = Adapter(
    name="video_mme",
    title="Video-MME",
    hub="lmms-lab/Video-MME",
    licence="academic use only, no redistribution",
    counts={"short": 900, "medium": 900, "long": 900},
    items=items,
)
