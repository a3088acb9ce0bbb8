# SPDX-License-Identifier: Apache-2.0
"""MMVU (arXiv 2501.12380): expert questions; the validation split's choice items, as in the paper."""

from collections.abc import Iterator

from data_tools.evaluate.adapters.base import CHOICE, Adapter, Download, Item, field_of, lettered
from verl_p2r.evaluation import Protocol

FIELDS = ("id", "video", "video_path", "question_type", "metadata", "question", "choices", "answer")


def items(source: Download, protocol: Protocol) -> Iterator[Item]:
    """Read `validation.json` or its parquet; open questions are left out.

    The videos are `videos/{Subject}/{n}.mp4`: `video` holds a link that ends so, lmms-eval's copy a `video_path`.
    """
    for row in source.rows("validation.json", "validation.jsonl", "**/validation-*.parquet", fields=FIELDS):
        if row["question_type"] != "multiple-choice":
            continue
        link = str(field_of(row, "video_path", "video"))
        path = "videos/" + link.rpartition("videos/")[2].lstrip("/")
        choices = [text for _, text in sorted(row["choices"].items()) if text not in (None, "")]
        subject = (row.get("metadata") or {}).get("subject") or path.split("/")[1]
        yield Item(
            id=str(row["id"]),
            question=row["question"],
            problem_type=CHOICE,
            solution=row["answer"],
            path=path,
            question_type="multiple-choice",
            options=lettered(choices),
            categories={"subject": str(subject)},
        )


ADAPTER = Adapter(
    name="mmvu",
    title="MMVU",
    hub="yale-nlp/MMVU",
    licence="none stated",
    counts={"multiple-choice": 625},
    items=items,
)
