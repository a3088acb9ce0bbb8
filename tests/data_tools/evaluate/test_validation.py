# SPDX-License-Identifier: Apache-2.0
"""Validation during training: the prepared records as parquet, and the same scores as the command's."""

import json

import benchmark_files
import pyarrow.parquet as pq
import pytest

from data_tools.evaluate.adapters import ADAPTERS
from data_tools.evaluate.prepare import prepare
from data_tools.records.files import files_of
from data_tools.steps.to_parquet import ExportSettings, to_parquet
from verl_p2r.data.rows import Row
from verl_p2r.evaluation import BENCHMARKS, score, validation_scores
from verl_p2r.template import parse_response

SAID = ("A", "B", "3", "(c)", "12.35", "")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_validation_and_score_agree_on_the_same_replies(tmp_path, name):
    counts = dict.fromkeys(ADAPTERS[name].counts, 6)
    benchmark_files.MAKERS[name](tmp_path / name, counts)
    prepare(name, tmp_path / name, tmp_path / "prepared", partial=True)
    to_parquet(files_of([tmp_path / "prepared"]), tmp_path / "val", "rl", ExportSettings(val_share=1.0))
    columns = pq.read_table(tmp_path / "val" / "val.parquet").to_pylist()
    raws = [json.loads(line) for line in (tmp_path / "prepared" / "part-00000.jsonl").read_text().splitlines()]
    records, validated = [], []
    for number, (raw, column) in enumerate(zip(raws, columns, strict=True)):
        said = SAID[number % len(SAID)]
        response = f"<observation>o</observation><think>t</think><answer>{said}</answer>"
        row = Row.from_columns(column)
        assert parse_response(response).answer == (said or None) or not said
        scores = validation_scores(column["data_source"], response, row.solution, row.problem_type, row.options)
        assert scores is not None
        validated.append(scores)
        records.append({**raw, "response": response, "finish_reason": "stop"})
    figures = score(records, "video_r1")[name]
    by_kind = {}
    for raw, (strict, _) in zip(raws, validated, strict=True):
        by_kind.setdefault(raw["question_type"], []).append(strict)
    assert {kind: row["score"] for kind, row in figures["categories"].items()} == pytest.approx(
        {kind: sum(scores) / len(scores) for kind, scores in by_kind.items()}
    )
    assert 0 < figures["score"] < 1
