# SPDX-License-Identifier: Apache-2.0
"""verl's validation on prepared benchmarks: `trainer.val_only=True` logs what `verl-p2r-eval score` computes."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import benchmark_files
import pytest
from letters_model import write_letters_model
from processes import family, kill

from data_tools.evaluate.adapters import ADAPTERS
from data_tools.evaluate.prepare import prepare
from data_tools.evaluate.rollouts import Rollouts
from data_tools.records.files import files_of
from data_tools.steps.to_parquet import ExportSettings, to_parquet
from verl_p2r.data.reading import read_values
from verl_p2r.data.record import Record
from verl_p2r.evaluation import BENCHMARKS, score

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("no_segments_left")]

LIMIT = 600  # seconds
ANSWERS = ("A", "B", "3")


def prepared(root: Path) -> list[Path]:
    """The seven benchmarks, with twelve items or more of their first question types."""
    for name in BENCHMARKS:
        kinds = list(ADAPTERS[name].counts)
        counts = {**dict.fromkeys(kinds, 0), **dict.fromkeys(kinds[:3], 12 // min(len(kinds), 3))}
        if name == "vsi_bench":  # three types of numbers come first
            counts |= {**dict.fromkeys(kinds[:3], 6), "route_planning": 6}
        benchmark_files.write_videos(root / name, benchmark_files.MAKERS[name](root / name, counts))
        prepare(name, root / name, root / "items" / name, media_root=root, partial=True)
    return [root / "items" / name for name in BENCHMARKS]


def validate(root: Path, model: Path, judge: str) -> None:
    """Run verl's validation, with generations for TensorBoard."""
    data = root / "data" / "val.parquet"
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-path", "pkg://verl_p2r.config"]
    command += ["--config-name", "p2r_ppo_cpu", "trainer.val_only=True", "trainer.val_before_train=True"]
    command += [f"data.train_files={data}", f"data.val_files={data}", "data.train_batch_size=4"]
    command += ["data.max_prompt_length=3072", "data.max_response_length=24", f"actor_rollout_ref.model.path={model}"]
    command += ["actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.rollout.max_model_len=3200"]
    command += ["actor_rollout_ref.rollout.gpu_memory_utilization=0.1"]
    command += ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4", "actor_rollout_ref.actor.use_kl_loss=False"]
    command += [f"actor_rollout_ref.{part}.log_prob_micro_batch_size_per_gpu=4" for part in ("rollout", "ref")]
    sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": -1}
    command += [f"actor_rollout_ref.rollout.val_kwargs.{name}={value}" for name, value in sampling.items()]
    command += ["p2r/judge=openai", "algorithm.p2r.judge.kwargs.model=judge", "algorithm.p2r.judge.health_check=False"]
    command += ["algorithm.p2r.judge.guards={answer_only:False,copied_question:False}"]
    command += [f"algorithm.p2r.judge.kwargs.base_urls=[{judge}]", f"trainer.default_local_dir={root}/checkpoints"]
    command += [f"trainer.validation_data_dir={root}/val", "trainer.log_val_generations=3"]
    command += ["trainer.logger=[console,file,tensorboard]", "data.p2r.screen_cache=null"]
    env = {**os.environ, "VERL_FILE_LOGGER_PATH": str(root / "metrics.jsonl"), "TENSORBOARD_DIR": str(root / "board")}
    log = root / "validation.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=env, start_new_session=True)
    try:
        code = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        kill(family(process.pid))
        code = None
    assert code == 0, log.read_text(errors="replace")[-5000:]


def scored_records(raws: Sequence[Mapping], rows: Sequence[Mapping]) -> list[dict]:
    """Each item with the response that the validation's file holds for it.

    The file names no item, but it holds question and truth, and items of equal ones are scored alike. The longest
    questions come first, because a question with more options contains the same one with fewer.
    """
    waiting = dict(enumerate(rows))
    asked = [(Record.parse(raw).question.strip(), raw) for raw in raws]
    found = []
    for question, raw in sorted(asked, key=lambda one: len(one[0]), reverse=True):
        number = next(
            number
            for number, row in waiting.items()
            if row["data_source"] == raw["benchmark"] and row["gts"] == raw["solution"] and question in row["input"]
        )
        found.append({**raw, "response": waiting.pop(number)["output"], "finish_reason": "stop"})
    assert not waiting
    return found


def test_validation_gives_the_scores_of_the_evaluation(tmp_path, tiny_model, judge_server):
    items = prepared(tmp_path)
    model = write_letters_model(tmp_path / "model", tiny_model, ANSWERS)
    export = to_parquet(
        files_of(items), tmp_path / "data", "rl", ExportSettings(val_share=1.0, media_root=str(tmp_path))
    )
    raws = [raw.value for file in files_of(items) for raw in read_values(file)]
    assert export.written == len(raws) == 96
    judge_server.control(yes_when="o")
    validate(tmp_path, model, judge_server.base_url)

    rows = [json.loads(line) for line in (tmp_path / "val" / "0.jsonl").read_text().splitlines()]
    answers = Counter(row["output"] for row in rows)
    form = "<observation>o</observation><think>t</think><answer>{}</answer>"
    assert answers.keys() == {form.format(answer) for answer in ANSWERS}
    figures = score(scored_records(raws, rows), "video_r1")
    [logged] = [json.loads(line)["data"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]  # step 0
    assert figures.keys() == set(BENCHMARKS)
    for name, row in figures.items():
        expected = row["overall"]["items"] if "overall" in row else row["score"]
        assert logged[f"val-core/{name}/acc/mean@1"] == pytest.approx(expected), name
    assert sum(0 < row["score"] < 1 for row in figures.values()) >= 4
    kinds = figures["vsi_bench"]["categories"]
    assert any(kinds[kind]["score"] > 0 for kind in list(ADAPTERS["vsi_bench"].counts)[:3])  # numbers count as well

    curves = Rollouts.read(tmp_path / "val").scores()
    assert curves == {name: [(0, pytest.approx(logged[f"val-core/{name}/acc/mean@1"]))] for name in BENCHMARKS}
    boards = (tmp_path / "board").rglob("events.*")  # metrics and generations
    assert sum(board.read_bytes().count(b"(judge: Yes) + reasoning") for board in boards) == 3
