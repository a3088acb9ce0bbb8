# SPDX-License-Identifier: Apache-2.0
"""The step of our trainers over a real TransferQueue in a real Ray: from `reward_extra_info` to advantages per token.

The trainer is built without its workers, and its `_compute_advantage` is compared with a slow loop over tokens.
"""

import json

import numpy as np
import pytest
import torch
from rollout_rows import BETA, Letters, Rollout, assert_equal, get, make_trainer, pad, put, rollouts, slow
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.trainer.ppo.v1 import get_trainer_cls

pytestmark = pytest.mark.slow  # for the start of Ray; the tests themselves are quick


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("separate", [True, False])
def test_trainer_advantages_match_slow_reference_loop(queue, seed, separate):
    rows = rollouts(seed)
    rows[2].valid = False
    batch = put(rows)
    trainer = make_trainer("algorithm.p2r.judge.max_no_verdict_share=1", f"algorithm.p2r.separate={separate}")
    done = trainer._compute_advantage(batch, {})
    assert done.keys == batch.keys
    advantages, returns = get(batch.keys, "advantages", "returns")
    assert_equal(advantages, slow(rows, separate=separate))
    assert advantages == returns


def test_responses_of_one_length_need_no_padding(queue):
    rows = rollouts(length=5)
    batch = put(rows)
    make_trainer()._compute_advantage(batch, {})
    assert_equal(get(batch.keys, "advantages")[0], slow(rows))


def test_async_trainers_compute_same_advantages(queue):
    rows = rollouts(1)
    batch = put(rows)
    for name in ("p2r_colocate_async", "p2r_separate_async"):
        make_trainer(cls=get_trainer_cls(name))._compute_advantage(batch, {})
        assert_equal(get(batch.keys, "advantages")[0], slow(rows))


def test_kl_penalty_in_reward_matches_slow_loop(queue):
    rows = rollouts(3)
    batch = put(rows)
    trainer = make_trainer("algorithm.use_kl_in_reward=True", f"algorithm.kl_ctrl.kl_coef={BETA}")
    metrics = {}
    trainer._compute_advantage(batch, metrics)
    assert_equal(get(batch.keys, "advantages")[0], slow(rows, kl=True))
    assert metrics["actor/reward_kl_penalty_coeff"] == BETA


def is_rejected(row: Rollout, place: int) -> bool:
    return row.rollout_log_probs[place] - row.old_log_probs[place] > 1.0


REJECTION = [
    "algorithm.rollout_correction.rollout_rs=token_k1",
    "algorithm.rollout_correction.rollout_rs_threshold=0.5_2.0",
]


def test_rejection_sampling_removes_only_rejected_tokens(queue):
    """verl's rollout correction narrows response_mask before it calls the estimator."""
    rows = rollouts(4)
    batch = put(rows)
    weights = ["algorithm.rollout_correction.rollout_is=token", "algorithm.rollout_correction.rollout_is_threshold=2.0"]
    make_trainer(*REJECTION, *weights)._compute_advantage(batch, {})
    advantages, masks, weights = get(batch.keys, "advantages", "response_mask", "rollout_is_weights")
    assert_equal(advantages, slow(rows, rejected=is_rejected))
    kept = [[int(row.mask[t] and not is_rejected(row, t)) for t in range(len(row.mask))] for row in rows]
    assert masks == kept
    assert sum(map(sum, kept)) < sum(sum(row.mask) for row in rows)
    assert [len(row) for row in weights] == [len(row.mask) for row in rows]


def test_rejection_sampling_with_kl_penalty_matches_slow_loop(queue):
    rows = rollouts(5)
    batch = put(rows)
    kl = ["algorithm.use_kl_in_reward=True", f"algorithm.kl_ctrl.kl_coef={BETA}"]
    make_trainer(*REJECTION, *kl)._compute_advantage(batch, {})
    assert_equal(get(batch.keys, "advantages")[0], slow(rows, kl=True, rejected=is_rejected))


def ours(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name.startswith("p2r/")}


def test_padding_rows_change_neither_metrics_nor_advantages(queue):
    rows = rollouts(6)
    rows[0].valid = False  # the row that verl copies: 1 of 8 without a verdict, counted with its copies 9 of 16
    trainer, alone, padded = make_trainer("algorithm.p2r.judge.max_no_verdict_share=0.2"), {}, {}
    batch = put(rows)
    trainer._compute_advantage(batch, alone)
    expected = get(batch.keys, "advantages")[0]
    batch = pad(batch, rows, 16)
    assert len(batch.keys) == 16
    trainer._compute_advantage(batch, padded)
    assert ours(padded) == pytest.approx(ours(alone))
    assert ours(alone)["p2r/no_verdict"] == 0.125
    assert_equal(get([row.key for row in rows], "advantages")[0], expected)
    pads = [key for key in batch.keys if key.startswith("pad")]
    assert get(pads, "advantages")[0] == [[0.0]] * 8


def test_trainer_step_metrics_match_hand_computed_values(queue):
    rows = rollouts(7, groups=[("a", 2), ("b", 2)])
    for row, (perception, reasoning) in zip(
        sorted(rows, key=lambda row: row.key), [(1, 0), (0, 1), (1, 1), (1, 1)], strict=True
    ):
        row.perception, row.reasoning = float(perception), float(reasoning)
    metrics = {}
    make_trainer()._compute_advantage(put(rows), metrics)
    assert metrics["p2r/perception/reward"] == metrics["p2r/reasoning/reward"] == 0.75
    assert metrics["p2r/collapse/perception"] == metrics["p2r/collapse/reasoning"] == 0.5
    assert metrics["p2r/collapse/combined"] == 1.0
    assert metrics["p2r/no_verdict"] == 0.0


def test_a_judge_that_says_yes_to_everything_is_noticed(queue, caplog):
    """The rows' verdicts are all Yes, and half of each answer is right."""
    trainer = make_trainer()
    seen = []
    for step in range(5):
        rows = rollouts(20 + step, groups=[(f"{step}{uid}", 8) for uid in "abc"])
        metrics = {}
        trainer._compute_advantage(put(rows), metrics)
        seen.append([metrics[f"p2r/{name}"] for name in ("judge/one_sided", "judge/yes", "collapse/verdict")])
    assert seen == [[0.0, 1.0, 1.0]] * 4 + [[1.0, 1.0, 1.0]]
    (warning,) = [message for message in caplog.messages if "its verdicts teach nothing" in message]
    assert warning.startswith("the judge 'facts' said Yes to 100.0% of 120 observations in the last 5 steps, while 50%")


def test_grpo_override_gives_verl_grpo_advantages(queue):
    rows = rollouts(8)
    batch = put(rows)
    metrics = {}
    make_trainer("algorithm.adv_estimator=grpo")._compute_advantage(batch, metrics)
    width = max(len(row.mask) for row in rows)
    mask, scores = torch.zeros(len(rows), width), torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        mask[i, : len(row.mask)] = torch.tensor(row.mask)
        scores[i, len(row.mask) - 1] = row.perception + row.reasoning
    verl, _ = compute_grpo_outcome_advantage(scores, mask, np.array([row.uid for row in rows], dtype=object))
    expected = [verl[i, : len(row.mask)].tolist() for i, row in enumerate(rows)]
    assert_equal(get(batch.keys, "advantages")[0], expected)
    assert "p2r/collapse/combined" in metrics


def test_several_outputs_of_a_session_are_refused(queue):
    rows = rollouts(9)
    rows[1].output = 1
    with pytest.raises(ValueError, match=rf"{rows[1].key} has several outputs.*returns one output per session"):
        make_trainer()._compute_advantage(put(rows), {})


def test_a_response_scored_by_another_manager_is_refused(queue, monkeypatch):
    monkeypatch.setattr(Rollout, "info", lambda row: {"acc": 1.0})
    with pytest.raises(RuntimeError, match=r"not scored by the reward manager p2r.*leave reward_score unset"):
        make_trainer()._compute_advantage(put(rollouts(9)), {})


def test_too_many_lost_rollouts_end_the_run(queue):
    """Seven rollouts where two prompts of four each were asked for."""
    rows = rollouts(groups=(("a", 4), ("b", 3)))
    batch, metrics = put(rows), {}
    trainer = make_trainer("data.train_batch_size=2", "actor_rollout_ref.rollout.n=4")
    trainer.run = trainer.config.trainer.p2r
    with pytest.raises(RuntimeError, match=r"12.5% of this step's rollouts failed.*max_lost_share=5.0%"):
        trainer._compute_advantage(batch, metrics)
    assert metrics["p2r/lost"] == 0.125


@pytest.mark.parametrize("limit", [0.25, 0.24])
def test_too_many_rows_without_a_verdict_end_the_run(queue, limit):
    rows = rollouts(10)
    rows[0].valid = rows[1].valid = False  # 2 of 8
    batch, trainer = put(rows), make_trainer(f"algorithm.p2r.judge.max_no_verdict_share={limit}")
    if limit == 0.25:
        trainer._compute_advantage(batch, {})
        return
    with pytest.raises(RuntimeError, match=r"no verdict on 25.0% .*max_no_verdict_share=24.0%: check .*") as caught:
        trainer._compute_advantage(batch, {})
    assert all(f"x the line to {uid} is dead" in str(caught.value) for uid in {rows[0].uid, rows[1].uid})


def validated(valid: list[int | None], errors: list[str | None]):
    """What verl's validation makes of these columns; a row of another reward manager holds None."""
    trainer = make_trainer("algorithm.p2r.judge.max_no_verdict_share=0.25")
    columns = {"reward": [1.0] * len(valid), "perception_valid": valid} | ({"judge_error": errors} if errors else {})
    uids = [str(i) for i in range(len(valid))]
    return trainer._val_metrics_update(["toy"] * len(valid), uids, columns, [2] * len(valid))


def test_validation_with_too_few_verdicts_stops_run():
    metrics = validated([1, 1, 1, 0], ["", "", "", "timed out"])
    assert metrics["val-aux/toy/perception_valid/mean@1"] == 0.75
    assert not any("judge_error" in name for name in metrics)  # a text
    assert validated([None, None], [None, None])["val-core/toy/reward/mean@1"] == 1.0
    assert validated([1, 1], [])["val-core/toy/reward/mean@1"] == 1.0  # a user's manager that gives no reasons
    with pytest.raises(RuntimeError, match=r"(?s)66.7% of the validation's .*Its errors:\n  2 x timed out"):
        validated([1, 0, 0, None], ["", "timed out", "timed out", None])


def test_a_dumped_rollout_shows_tokens_and_advantages(queue, tmp_path):
    rows = rollouts(11)
    trainer = make_trainer(f"trainer.rollout_data_dir={tmp_path}/rollouts")
    batch = pad(put(rows), rows, 5)
    trainer._compute_advantage(batch, {})
    trainer._init_dump_executor()
    trainer._log_rollout_data(batch, {}, trainer.config.trainer.rollout_data_dir)
    trainer._shutdown_dump_executor()
    lines = [json.loads(line) for line in (tmp_path / "rollouts" / "3.jsonl").read_text().splitlines()]
    assert [line["uid"] for line in lines] == sorted(batch.keys)
    of_key = {row.key: (row, advantages) for row, advantages in zip(rows, slow(rows), strict=True)}
    for line in lines:
        if line["uid"].startswith("pad"):
            continue
        row, advantages = of_key[line["uid"]]
        assert line["output"] == "".join(line["tokens"]) == Letters().decode(row.ids)
        assert line["advantages"] == pytest.approx(advantages, abs=1e-4)
        assert {name: line[name] for name in row.info()} == row.info()
        assert line["score"] == pytest.approx(row.perception + row.reasoning)


def test_dumped_validation_is_unchanged_from_verl(tmp_path):
    """Its rows are no longer in the train partition, and they have no advantages; the folder may be the same."""
    trainer = make_trainer(f"trainer.rollout_data_dir={tmp_path}", f"trainer.validation_data_dir={tmp_path}")
    trainer._init_dump_executor()
    infos = {"reward": [1.0], "acc": [1.0], "uid": ["a_0_0"]}
    trainer._dump_generations(["in"], ["out"], ["A"], [1.0], infos, str(tmp_path))
    trainer._shutdown_dump_executor()
    line = json.loads((tmp_path / "3.jsonl").read_text())
    assert line == {
        "input": "in",
        "output": "out",
        "gts": "A",
        "score": 1.0,
        "step": 3,
        **{k: v[0] for k, v in infos.items()},
    }
