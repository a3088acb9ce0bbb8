# SPDX-License-Identifier: Apache-2.0
"""VSI-Bench (arXiv 2412.14171): numbers by mean relative accuracy, and choices, about indoor scans."""

from collections.abc import Iterator

from data_tools.evaluate.adapters.base import CHOICE, NUMBER, Adapter, Download, Item, lettered
from verl_p2r.evaluation import Protocol

COUNTS = {
    "object_size_estimation": 953,
    "object_abs_distance": 834,
    "object_counting": 565,
    "room_size_estimation": 288,
    "object_rel_distance": 710,
    "obj_appearance_order": 618,
    "object_rel_direction_easy": 217,
    "object_rel_direction_medium": 378,
    "object_rel_direction_hard": 373,
    "route_planning": 194,
}
NUMERIC = ("object_size_estimation", "object_abs_distance", "object_counting", "room_size_estimation")
FIELDS = ("id", "dataset", "scene_name", "question_type", "question", "ground_truth", "options")


def items(source: Download, protocol: Protocol) -> Iterator[Item]:
    """Read `test-*.parquet` or `test.jsonl`; the videos are `{dataset}/{scene_name}.mp4`."""
    for row in source.rows("test-*.parquet", "test.parquet", "test.jsonl", fields=FIELDS):
        number = row["question_type"] in NUMERIC
        scene = f"{row['dataset']}/{row['scene_name']}"
        yield Item(
            id=str(row["id"]),
            question=row["question"],
            problem_type=NUMBER if number else CHOICE,
            solution=str(row["ground_truth"]),
            path=f"{scene}.mp4",
            question_type=row["question_type"],
            options=() if number else lettered(row["options"]),
            video_id=scene,
            categories={"dataset": row["dataset"]},
        )


ADAPTER = Adapter(
    name="vsi_bench",
    title="VSI-Bench",
    hub="nyu-visionx/VSI-Bench",
    licence="Apache-2.0; ScanNet, ScanNet++ and ARKitScenes have separate terms",
    counts=COUNTS,
    items=items,
)
