# SPDX-License-Identifier: Apache-2.0
"""Files in the published formats: the same field names, nesting, stringification and blanks."""

import gzip
import json
from pathlib import Path

OBSERVATION = "Based on the question, I need to notice the ball. It is été red."
THINKING = "Based on the observations, the ball is red. Let me check: yes."


def release_record(number: int = 1, **changes) -> dict:
    """A record of the release's SFT file."""
    record = {
        "problem": "Which ball moves first?",
        "options": ["A. the red one", 'B. it\'s the "blue" one'],
        "solution": "<answer>A</answer>",
        "answer": "A",
        "path": f"./STAR/Charades_v1_480/{number}ab.mp4",
        "data_source": "",
        "data_type": "video",
        "problem_type": "multiple choice",
        "observation": OBSERVATION,
        "process": f"<think>{THINKING}</think>",
        "output": f"<observation>{OBSERVATION}</observation>\n<think>{THINKING}</think>\n<answer>A</answer>",
        "problem_id": number,
        "reward": 1.0,
        "select": True,
        "clean_version": 2,
    }
    return {**record, **changes}


def stringified(record: dict, lists=str) -> dict:
    """The same as the release's RL file has it: every value a text, Python's way or (`lists=json.dumps`) JSON's."""
    return {k: v if isinstance(v, str) else lists(v) for k, v in record.items()}


def gz_list(path: Path, records: list, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(records, ensure_ascii=False, **how).encode()))
    return path


def write_release(folder: Path, sft: list[dict], rl: list[dict]) -> Path:
    """A download of the release: SFT in two parts, RL in three."""
    for name, records, count in (("162k_sft", sft, 2), ("263k_rl", rl, 3)):
        for part in range(count):
            own = records[part * len(records) // count : (part + 1) * len(records) // count]
            gz_list(folder / "data" / f"VideoP2R-{name}.part{part + 1}of{count}.json.gz", own, indent=1)
    return folder


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
