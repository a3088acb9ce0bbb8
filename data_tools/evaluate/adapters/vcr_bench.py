# SPDX-License-Identifier: Apache-2.0
"""VCR-Bench (arXiv 2504.07956), the choice items. The `vcrbench` of other projects is a different benchmark."""

from collections.abc import Iterator

from data_tools.evaluate.adapters.base import CHOICE, Adapter, Download, Item, lettered
from verl_p2r.evaluation import Protocol

FOLDER = "v1/videos"


def items(source: Download, protocol: Protocol) -> Iterator[Item]:
    """Read `v1/videos/meta_info_video.json`; open questions and empty choices are left out."""
    for row in source.rows(f"{FOLDER}/meta_info_video.json", "meta_info_video.json"):
        if row["multiple-choice"] not in (True, "true", "True"):
            continue
        choices = [text for _, text in sorted(row["choices"].items()) if str(text or "").strip()]
        name = row["video_path"].removeprefix("./").lstrip("/")
        yield Item(
            id=str(row["id"]),
            question=row["question"],
            problem_type=CHOICE,
            solution=row["answer"],
            path=source.first_file(f"{FOLDER}/{name}", f"{FOLDER}/video/{name}", name),
            question_type=row["dimension"],
            options=lettered(choices),
        )


ADAPTER = Adapter(
    name="vcr_bench",
    title="VCR-Bench",
    hub="VLM-Reasoning/VCR-Bench",
    licence="none stated",
    counts={"": 510},  # the split into dimensions is not published
    items=items,
)
