# SPDX-License-Identifier: Apache-2.0
"""Folders that look like runs of the quickstart, with made-up numbers."""

import json
import sys
from pathlib import Path

from paths import QUICKSTART
from typer.testing import CliRunner

sys.path.insert(0, str(QUICKSTART))

import run_data
import typer

SOURCES = ("toy_motion/colour", "toy_motion/direction")
PNG = b"\x89PNG\r\n\x1a\n"


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def training_metrics(step: int, steps: int) -> dict:
    """One step of a run that learns, with verl's null for a value that was NaN."""
    gone = step / steps
    data = {"training/rollout_actor_probs_pearson_corr": 0.9995, "timing_s/step": 12.0, "timing_s/gen": 5.0}
    data |= {"actor/grad_norm": None, "p2r/no_verdict": 0.0}
    for process, start in (("perception", 0.35), ("reasoning", 0.45)):
        accuracy = start + (0.95 - start) * gone
        data |= {
            f"p2r/{process}/accuracy": accuracy,
            f"p2r/{process}/format": 0.9 + 0.1 * gone,
            f"p2r/{process}/reward": accuracy + 0.9 + 0.1 * gone,
            f"p2r/{process}/length_reward": 0.0,
            f"p2r/{process}/tokens": 14 - 2 * gone,
            f"p2r/collapse/{process}": 0.1 + 0.5 * gone,
        }
    return data | {"p2r/collapse/combined": 0.05 + 0.5 * gone}


def validation_metrics(accuracy: float) -> dict:
    data = {}
    for place, source in enumerate(SOURCES):
        data[f"val-core/{source}/acc/mean@1"] = accuracy
        for process in run_data.PROCESSES:
            data[f"val-aux/{source}/{process}_accuracy/mean@1"] = accuracy + 0.02 * place
            data[f"val-aux/{source}/{process}_format/mean@1"] = 0.9
            data[f"val-aux/{source}/{process}_reward/mean@1"] = accuracy + 0.9
            data[f"val-aux/{source}/{process}_tokens/mean@1"] = 14.0
    return data


def metrics_rows(steps: int, before: float = 0.4, after: float = 0.9) -> list[dict]:
    rows = [{"step": 0, "data": validation_metrics(before)}]
    for step in range(1, steps + 1):
        last = validation_metrics(after) if step == steps else {}
        rows.append({"step": step, "data": training_metrics(step, steps) | last})
    return rows


def held_out(perception_right: int, reasoning_right: int, n: int) -> list[dict]:
    """`n` rows of which the first so many are right."""
    return [
        {"input": f"clip {i}", "output": "…", "gts": "A", "score": 1.0, "acc": float(i < reasoning_right)}
        | {"perception_accuracy": float(i < perception_right), "reasoning_accuracy": float(i < reasoning_right)}
        | {"perception_format": 1.0, "reasoning_format": 1.0}
        for i in range(n)
    ]


def rollout(uid: str, advantages: tuple[float, float], rewards: tuple[float, float], answer: str = "A") -> dict:
    perception = ["<observation>", "a red square", " moves left", "</observation>"]
    reasoning = ["<think>", "red is option A", "</think>", "<answer>", answer, "</answer>"]
    row = {
        "input": "user\nWhich colour is the square?\nOptions:\nA. red\nB. blue",
        "output": "".join(perception + reasoning),
        "gts": "A",
        "score": sum(rewards),
        "uid": uid,
        "tokens": perception + reasoning,
        "advantages": [advantages[0]] * len(perception) + [advantages[1]] * len(reasoning),
        "perception_tokens": len(perception),
        "acc": float(answer == "A"),
    }
    for process, reward in zip(run_data.PROCESSES, rewards, strict=True):
        row |= {f"{process}_reward": reward, f"{process}_accuracy": reward - 1, f"{process}_format": 1.0}
    return row


# The group's perception rewards are 2, 1, 1, 1 and its reasoning rewards 1, 2, 2, 2.
GROUP = [
    rollout("g_0_0", (1.5, -1.5), (2.0, 1.0), answer="<script>alert(1)</script>"),
    *(rollout(f"g_{session}_0", (-0.5, 0.5), (1.0, 2.0)) for session in (1, 2, 3)),
]


def fake_run(folder: Path, *, evaluation: bool = True) -> Path:
    write_rows(folder / "rl" / "metrics.jsonl", metrics_rows(8))
    sft = [{"step": step, "data": {"train/loss": 2 / step, "val/loss": 2.2 / step}} for step in range(1, 30)]
    write_rows(folder / "sft" / "metrics.jsonl", sft)
    write_rows(folder / "rl" / "rollouts" / "1.jsonl", [rollout("f_0_0", (2.0, 2.0), (2.0, 2.0))])
    write_rows(folder / "rl" / "rollouts" / "2.jsonl", GROUP)
    write_rows(folder / "rl" / "val" / "0.jsonl", held_out(32, 48, 160))
    write_rows(folder / "rl" / "val" / "8.jsonl", held_out(128, 144, 160))
    if evaluation:
        write_rows(folder / "eval" / "sft_sampled.jsonl", held_out(40, 60, 160))
        write_rows(folder / "eval" / "rl_sampled.jsonl", held_out(152, 140, 160))
        write_rows(folder / "eval" / "sft_greedy.jsonl", held_out(120, 130, 160))
        write_rows(folder / "eval" / "rl_greedy.jsonl", held_out(156, 140, 160))
    return folder


def invoke(main, *arguments: object):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
