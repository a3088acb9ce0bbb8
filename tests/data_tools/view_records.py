# SPDX-License-Identifier: Apache-2.0
"""A step's output to look at: kept and dropped records of two modalities, with everything a step adds to them."""

import json
from pathlib import Path

from release_files import OBSERVATION, THINKING, release_record, write_lines

FORMAT = {"step": "verify", "reason": "format", "message": "no <observation>: ask the model again"}
WRONG = {"step": "verify", "reason": "accuracy below 0.6", "message": "the answer B has accuracy 0.00"}
UNCLEAR = {"step": "judge", "reason": "insufficient observation", "message": "the judge says No"}
YES = {"value": True, "reason": "It names the ball that moves.", "source": "judge"}
NO = {"value": False, "reason": "It never says what moves.", "source": "cache"}


def response(answer: str) -> str:
    return f"<observation>{OBSERVATION}</observation>\n<think>{THINKING}</think>\n<answer>{answer}</answer>"


def kept(number: int, **changes) -> dict:
    """A record that a judge has kept."""
    return release_record(number, verdict=YES, generated_by="a-model", **changes)


def dropped(number: int, why: dict, **changes) -> dict:
    """A record that a step has dropped."""
    return release_record(number, **{"dropped": why, "select": None, "reward": 0.0, "output": response("B"), **changes})


def image(number: int) -> dict:
    """What makes a record one about an image."""
    return {
        "problem": "How many bars?",
        "problem_type": "numerical",
        "data_type": "image",
        "path": f"./Chart/{number}.png",
        "options": [],
        "solution": "<answer>7</answer>",
        "answer": "7",
    }


def write_step(folder: Path, keep: list[dict], drop: list[dict], step: str = "judge", history: tuple = ()) -> Path:
    """Write a step's output folder as the steps do."""
    folder.mkdir(parents=True)
    write_lines(folder / "part-00000.jsonl", keep)
    if drop:
        write_lines(folder / "dropped.jsonl", drop)
    reasons: dict[str, int] = {}
    for record in drop:
        reasons[record["dropped"]["reason"]] = reasons.get(record["dropped"]["reason"], 0) + 1
    manifest = {
        "step": step,
        "read": len(keep) + len(drop),
        "written": len(keep),
        "rejected": {},
        "dropped": reasons,
        "history": list(history),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder
