# SPDX-License-Identifier: Apache-2.0
"""What verl's own loggers show of a validation: both rewards and the verdict next to each response."""

import pytest
from rollout_rows import make_trainer
from verl.utils.tracking import ValidationGenerationsLogger

from verl_p2r.plugin.rl.generations import score_line, score_lines

INFOS = {
    "reward": [4.2, 2.0, 1.0],
    "perception_reward": [2.2, 1.0, 0.0],
    "perception_accuracy": [1.0, 0.0, None],
    "perception_valid": [1, 1, 1],
    "reasoning_reward": [2.0, 1.0, 1.0],
    "acc": [1.0, 0.0, 0.5],
    "judge_error": ["", "", ""],
}
LINES = [
    "4.20 = perception 2.20 (judge: Yes) + reasoning 2.00 (answer: 1.00)",
    "2.00 = perception 1.00 (judge: No) + reasoning 1.00 (answer: 0.00)",
    "1.00 = perception 0.00 (judge: no verdict) + reasoning 1.00 (answer: 0.50)",
]


def validated(logger: str, *overrides: str):
    """The generations logger of a trainer after a validation of three responses."""
    trainer = make_trainer(f"trainer.logger=[console,{logger}]", *overrides)
    trainer.validation_generations_logger = ValidationGenerationsLogger("project", "run")
    trainer._maybe_log_val_generations(inputs=["q0", "q1", "q2"], outputs=["r0", "r1", "r2"], scores=INFOS["reward"])
    trainer._val_metrics_update(["toy"] * 3, ["a", "b", "c"], INFOS, [2] * 3)
    return trainer.validation_generations_logger


def test_the_lines_by_hand():
    assert score_lines(INFOS["reward"], INFOS) == LINES


def test_a_soft_reward_shows_the_probability():
    info = {"perception_reward": 1.7, "perception_accuracy": 0.7, "reasoning_reward": 1.0, "acc": 0.0}
    assert score_line(2.7, info) == "2.70 = perception 1.70 (judge: P(Yes) = 0.70) + reasoning 1.00 (answer: 0.00)"


def test_rows_of_another_reward_manager_show_their_score():
    assert score_line(0.5, {"perception_reward": None, "acc": 0.5}) == "0.50"
    assert score_lines([0.5, 1.0], {"reward": [0.5, 1.0], "perception_reward": [1.0]}) == ["0.50", "1.00"]


def test_tensorboard_shows_both_rewards_and_the_verdict(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path))
    validated("tensorboard", "trainer.log_val_generations=3").writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    [event] = events.Tensors("val/generations/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 3
    for place, line in enumerate(LINES):
        assert f"**Input:** q{place}\n\n**Output:** r{place}\n\n**Score:** {line}\n" in text


def test_wandbs_table_shows_both_rewards_and_the_verdict():
    pytest.importorskip("wandb")
    [row] = validated("wandb", "trainer.log_val_generations=2").validation_table.data
    assert row[0] == 3
    shown = [tuple(row[place : place + 3]) for place in (1, 4)]
    assert len(row) == 7
    assert set(shown) <= {(f"q{place}", f"r{place}", line) for place, line in enumerate(LINES)}


def test_without_the_setting_nothing_is_logged():
    assert not hasattr(validated("wandb"), "validation_table")
