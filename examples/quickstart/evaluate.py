# SPDX-License-Identifier: Apache-2.0
"""Score a checkpoint on the held-out items, sampled and greedy.

    python examples/quickstart/evaluate.py CHECKPOINT --name sft

writes `eval/<name>_sampled.jsonl` and `eval/<name>_greedy.jsonl`: one line an item, with the rewards' parts.
"""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer
from conversations import conversation
from inference import Model

from verl_p2r.accuracy import answer_accuracy
from verl_p2r.data.rows import Row
from verl_p2r.judge import get_judge
from verl_p2r.rewards import has_observation
from verl_p2r.template import parse_response

JUDGE = get_judge("facts")


def score(columns: dict, text: str) -> dict:
    """One line of the output: the response and what each process earned."""
    row = Row.from_columns(columns)
    parsed = parse_response(text)
    seen = has_observation(parsed) and asyncio.run(JUDGE.judge(row.judge_request(parsed.observation or ""))).value
    accuracy = answer_accuracy(row.problem_type, parsed.answer or "", row.solution, options=row.options)
    return {
        "input": row.question,
        "output": text,
        "gts": row.solution,
        "data_source": columns["data_source"],
        "score": float(bool(seen)) + accuracy,
        "acc": accuracy,
        "perception_accuracy": float(bool(seen)),
        "reasoning_accuracy": accuracy,
        "perception_format": float(parsed.perception_well_formed),
        "reasoning_format": float(parsed.reasoning_well_formed),
    }


def main(
    checkpoint: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Hugging Face folder.")],
    name: str = typer.Option(..., help="How the output files are called: sft or rl."),
    data: Annotated[Path, typer.Option(exists=True)] = Path("outputs/quickstart/data/rl_val.parquet"),
    out: Path = Path("outputs/quickstart/eval"),
) -> None:
    """Answer every item of DATA with CHECKPOINT, sampled and greedy, and write one JSONL for each."""
    rows = pq.read_table(data).to_pylist()
    conversations = [conversation(row["prompt"], row["videos"]) for row in rows]
    model = Model(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    for mode, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        texts = model.answer(conversations, temperature)
        lines = [json.dumps(score(row, text), ensure_ascii=False) for row, text in zip(rows, texts, strict=True)]
        partial = out / f"{name}_{mode}.jsonl.partial"
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.rename(out / f"{name}_{mode}.jsonl")


if __name__ == "__main__":
    typer.run(main)
