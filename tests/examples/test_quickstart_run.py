# SPDX-License-Identifier: Apache-2.0
"""The quickstart's progress when its output is a file: start, steps and end of each stage, as lines."""

import importlib.util
import json
import subprocess
import sys

import pytest
import typer
from paths import QUICKSTART

from verl_p2r.plugin.plan.launches import read
from verl_p2r.plugin.rl.trainer import check_config

RUN = QUICKSTART / "run.py"


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("quickstart_run", RUN)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_progress_prints_every_tenth_of_steps_and_each_silent_minute(run):
    lines, now = [], [0.0]
    show = run.progress_lines(run.Stage("SFT", [], steps=20), lines.append, lambda: now[0])
    for seconds, step in ((1, 1), (2, 2), (3, 3), (4, 7), (63, 7), (64, 7), (65, 20)):
        now[0] = seconds
        show(step)
    # Step 7 passes the second and the third tenth at once; 60 s later nothing has changed.
    assert lines == [
        "SFT: step 2 of 20, 2 s",
        "SFT: step 7 of 20, 4 s",
        "SFT: step 7 of 20, 64 s",
        "SFT: step 20 of 20, 65 s",
    ]


def test_stage_without_steps_prints_progress_each_minute(run):
    lines, now = [], [0.0]
    show = run.progress_lines(run.Stage("evaluation", []), lines.append, lambda: now[0])
    for now[0] in (30.0, 60.0, 90.0, 125.0):
        show(0)
    assert lines == ["evaluation: running, 60 s", "evaluation: running, 125 s"]


@pytest.mark.parametrize("text", ['{"data": 1', "7", ""])
def test_damaged_timings_cost_only_the_times(run, tmp_path, text, capsys):
    (tmp_path / "timings.json").write_text(text)
    assert run._earlier_seconds(tmp_path / "timings.json") == {}
    assert "cannot be read" in capsys.readouterr().out
    assert not (tmp_path / "timings.json").exists()  # the report, which reads it too, goes on without it
    assert run._earlier_seconds(tmp_path / "none.json") == {}


def test_quickstart_output_to_file_names_start_and_end_of_each_stage(run, tmp_path):
    """The real command on a folder where every stage but one has finished; that one fails at once."""
    (tmp_path / "done").mkdir()
    for name in ("data", "model", "sft"):
        (tmp_path / "done" / name).touch()
    (tmp_path / "timings.json").write_text(json.dumps({"data": 1, "model": 2, "SFT": 3}))
    done = subprocess.run(
        [sys.executable, str(RUN), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/nowhere:/bin:/usr/bin", "HOME": str(tmp_path), "MODEL": str(tmp_path / "none")},
        timeout=300,
    )
    assert done.returncode
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "[1/6] data: finished earlier in 1 s",
        "[2/6] model: finished earlier in 2 s",
        "[3/6] SFT: finished earlier in 3 s",
    ]
    assert lines[3].startswith("[4/6] PA-GRPO: started; its output: ")
    assert "PA-GRPO failed with exit code" in lines[-1]


@pytest.mark.parametrize("judge", ["facts", "self"])
def test_the_judge_of_the_quickstart_is_chosen_by_name(run, tmp_path, judge):
    stage = next(stage for stage in run.stages(tmp_path, 1, 420, 30, judge) if stage.name == "PA-GRPO")
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LAUNCH": r"printf %s\0", **stage.env}
    done = subprocess.run(stage.command, env=environ, capture_output=True, text=True, check=True, timeout=60)
    config = read(done.stdout.split("\0")[:-1]).config
    settings = check_config(config)
    assert settings.judge.name == judge
    if judge == "self":
        assert settings.judge.kwargs["compare_with"] == {"name": "facts"}
        assert (settings.judge.second_answer.think, settings.judge.second_answer.max_tokens) == (True, 24)


def test_a_folder_of_a_run_that_named_no_judge_is_that_of_the_facts_judge(run, tmp_path):
    (tmp_path / "arguments.json").write_text(json.dumps({"seed": 1, "sft_steps": 420, "rl_steps": 30}))
    with pytest.raises(typer.Exit):
        run.main(tmp_path, judge="self")
    assert "judge" not in json.loads((tmp_path / "arguments.json").read_text())
