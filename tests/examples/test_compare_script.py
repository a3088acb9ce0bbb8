# SPDX-License-Identifier: Apache-2.0
"""`compare.sh` up to the commands that it starts: algorithms, noise dials, seeds, and what it runs again."""

import os
import subprocess
from pathlib import Path

import pytest
from paths import QUICKSTART

STUB = """#!/bin/sh
echo "$@" >>"$CALLS"
"""


@pytest.fixture
def compare(tmp_path):
    """`compare(**env)`: run the script with a stand-in for Python; returns the result and the RL commands."""
    stub, out, calls = tmp_path / "bin/python", tmp_path / "out", tmp_path / "calls"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    for name, text in (("data/manifest.json", "D"), ("model/manifest.json", "M"), ("sft/done", "DM SFT 420")):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text(text)

    def run(**env: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        calls.write_text("")
        path = f"{stub.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(QUICKSTART / "compare.sh")],
            env={"PATH": path, "HOME": str(tmp_path), "OUT": str(out), "CALLS": str(calls), **env},
            capture_output=True,
            text=True,
            check=False,
        )
        return done, [line for line in calls.read_text().splitlines() if "main_ppo" in line]

    run.out = out
    return run


def test_noise_and_cross_credit_reach_the_trainer_with_paired_seeds(compare):
    done, commands = compare(SEEDS="4 5", ALGORITHMS="pa_grpo cross_0.5", FLIPPED_VERDICTS="0.3")
    assert done.returncode == 0, done.stderr
    assert [("cross_credit=0.5" in line, "data.seed=5" in line) for line in commands] == [
        (False, False),
        (True, False),
        (False, True),
        (True, True),
    ]
    assert ["trainer.val_before_train=True" in line for line in commands] == [True, True, False, False]
    for line in commands:
        assert "+trainer.flipped.verdicts=0.3 +trainer.flipped.answers=0" in line
        path = Path(line.split("reward.reward_manager.module.path='")[1].split("'")[0])
        assert path == QUICKSTART / "noisy_rewards.py"
        assert path.is_file()
    for name in ("pa_grpo/seed4", "cross_0.5/seed5"):
        assert (compare.out / "flipped_0.3_0" / name / "done").is_file()


def test_a_clean_run_has_our_own_reward_manager_and_what_has_finished_is_kept(compare):
    done, commands = compare(SEEDS="1", ALGORITHMS="no_separation grpo_reasoning")
    assert done.returncode == 0, done.stderr
    assert len(commands) == 2
    assert all("flipped" not in line and "importlib" not in line for line in commands)
    assert "algorithm.p2r.separate=false" in commands[0]
    assert "algorithm.adv_estimator=grpo algorithm.p2r.perception.enabled=false" in commands[1]
    (compare.out / "no_separation/seed1/done").unlink()  # as after a kill
    assert [
        ("separate=false" in line) for line in compare(SEEDS="1", ALGORITHMS="no_separation grpo_reasoning")[1]
    ] == [True]
    # Runs with noise are separate.
    assert len(compare(SEEDS="1", ALGORITHMS="no_separation", FLIPPED_ANSWERS="0.3")[1]) == 1


def test_an_unknown_algorithm_is_named_before_anything_runs(compare):
    done, commands = compare(ALGORITHMS="pa_grpo ppo")
    assert done.returncode != 0
    assert "unknown algorithm ppo: use pa_grpo," in done.stderr
    assert commands == []
