# SPDX-License-Identifier: Apache-2.0
"""The seam, over a real TransferQueue in a real Ray: from `reward_extra_info` to advantages per token.

Rows enter the queue as verl's agent loop worker writes them. The trainer is built without its workers, and its
`_compute_advantage` is compared with a slow loop over tokens.
"""

import json
import random
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transfer_queue as tq
from cpu_config import make_config
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_kl_controller
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_p2r.plugin.rl.reward_manager import _both
from verl_p2r.plugin.rl.trainer import P2RTrainerSync, check_config

pytestmark = pytest.mark.slow  # for the start of Ray; the tests themselves are quick
BETA = 0.1  # of the KL penalty in the reward


class Letters:
    """A tokenizer whose every id is one letter."""

    pad_token_id = 0
    eos_token_id = 1

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(96 + int(i)) for i in ids if not (skip_special_tokens and i < 2))


def make_trainer(*overrides: str, cls=P2RTrainerSync):
    """A trainer as it stands when training begins, without dataset, workers and rollout."""
    config = make_config(*overrides)
    trainer = object.__new__(cls)
    trainer.config, trainer.p2r, trainer.tokenizer = config, check_config(config), Letters()
    trainer.global_steps, trainer.parameter_sync_step = 3, 1
    trainer.run = {"max_lost_share": 1.0}  # most tests put fewer rollouts than the config asks for
    if config.algorithm.use_kl_in_reward:
        trainer.kl_ctrl_in_reward = get_kl_controller(config.algorithm.kl_ctrl)
    return trainer


class Rollout(SimpleNamespace):
    """One response: uid, session, rewards, boundary, mask and log probabilities, from which its row is made."""

    @property
    def key(self) -> str:
        return f"{self.uid}_{self.session}_{self.output}"

    def row(self) -> tuple[str, dict, dict]:
        """Key, fields and tag, as `AgentLoopWorkerTQ._agent_loop_postprocess` puts them."""
        length = len(self.mask)
        output = AgentLoopOutput(
            prompt_ids=[2, 3],
            response_ids=self.ids,
            response_mask=self.mask,
            response_logprobs=self.rollout_log_probs,
            reward_score=self.perception + self.reasoning,
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={"reward_extra_info": self.info(), "min_global_steps": 2, "max_global_steps": 2},
        )
        fields = output.as_dict()
        fields.update(uid=self.uid, session_id=self.session, global_steps=2, data_source="toy")
        fields.update(reward_model={"ground_truth": "A"}, extra_info={"index": 0, "facts": ["red"]})
        fields["loss_mask"] = fields["response_mask"]
        fields["input_ids"] = torch.cat([fields["prompts"], fields["responses"]])
        fields["position_ids"] = torch.arange(2 + length)
        fields["multi_modal_inputs"] = {}
        tag = {"status": "success", "prompt_len": 2, "response_len": length, "seq_len": 2 + length, "global_steps": 2}
        return self.key, fields, {**tag, "min_global_steps": 2, "max_global_steps": 2}

    def info(self) -> dict:
        """The keys of the reward manager."""
        tokens = {"perception_tokens": self.boundary, "reasoning_tokens": len(self.mask) - self.boundary}
        parts = {f"{process}_{part}": 0.5 for process in ("perception", "reasoning") for part in ("accuracy", "format")}
        parts |= {f"{process}_length_reward": 0.0 for process in ("perception", "reasoning")}
        rewards = {"perception_reward": self.perception, "reasoning_reward": self.reasoning}
        both = _both(self.perception, self.reasoning)
        judge = {"judge_error": "" if self.valid else f"the line to {self.uid} is dead"}
        judge |= {"judge_seconds": 0.5, "judge_cached": 0, "judge_retries": 1}
        valid = int(self.valid)
        return {**rewards, **parts, **tokens, "perception_valid": valid, "both_rewards": both, "acc": 0.5, **judge}


def rollouts(seed: int = 0, groups=(("a", 4), ("b", 3), ("c", 1)), length: int | None = None) -> list[Rollout]:
    """Responses of several groups, of different lengths, with holes in their masks, in shuffled order."""
    rng = random.Random(seed)
    made = []
    for uid, size in groups:
        for session in range(size):
            tokens = length or rng.randint(3, 9)
            boundary = (0, tokens, rng.randint(1, tokens - 1))[rng.choice((0, 1, 2, 2, 2))]
            mask = [1 if place in (0, tokens - 1) else int(rng.random() < 0.8) for place in range(tokens)]
            old = [rng.uniform(-2, 0) for _ in range(tokens)]
            made.append(
                Rollout(
                    uid=uid,
                    session=session,
                    output=0,
                    ids=[rng.randint(2, 27) for _ in range(tokens)],
                    mask=mask,
                    boundary=boundary,
                    perception=round(rng.uniform(0, 2.2), 3),
                    reasoning=round(rng.uniform(0, 2.2), 3),
                    valid=True,
                    old_log_probs=old,
                    ref_log_prob=[rng.uniform(-2, 0) for _ in range(tokens)],
                    # A quarter of the tokens are far off the policy: rejection sampling takes them.
                    rollout_log_probs=[p + (3.0 if rng.random() < 0.25 else 0.1) for p in old],
                )
            )
    rng.shuffle(made)
    return made


def put(rows: list[Rollout]) -> KVBatchMeta:
    """Put the responses into the queue, each from its own agent loop."""
    tags = []
    for row in rows:
        key, fields, tag = row.row()
        tq.kv_batch_put(keys=[key], fields=list_of_dict_to_tensordict([fields]), tags=[tag], partition_id="train")
        tags.append(tag)
    return put_log_probs(KVBatchMeta(partition_id="train", keys=[row.key for row in rows], tags=tags), rows)


def put_log_probs(batch: KVBatchMeta, rows: list[Rollout]) -> KVBatchMeta:
    """What the actor and the reference model compute; padding rows have one token."""
    by_key = {row.key: row for row in rows}
    fields = {
        name: torch.nested.as_nested_tensor(
            [torch.tensor(getattr(by_key[key], name)) if key in by_key else torch.tensor([-1.0]) for key in batch.keys],
            layout=torch.jagged,
        )
        for name in ("old_log_probs", "ref_log_prob")
    }
    tq.kv_batch_put(keys=batch.keys, partition_id="train", fields=TensorDict(fields, batch_size=len(batch.keys)))
    return batch


def pad(batch: KVBatchMeta, rows: list[Rollout], multiple: int) -> KVBatchMeta:
    """verl's own padding, which comes before the log probabilities and before ranks are balanced."""
    batch = upsample_batch_to_divisible_size(batch, multiple, Letters.eos_token_id)
    batch.reorder(random.Random(0).sample(range(len(batch.keys)), len(batch.keys)))
    return put_log_probs(batch, rows)


def get(keys: list[str], *fields: str) -> list[list[list[float]]]:
    data = tq.kv_batch_get(keys=keys, partition_id="train", select_fields=list(fields))
    return [[row.tolist() for row in data[field].unbind()] for field in fields]


def slow(
    rows: list[Rollout], *, separate=True, kl=False, rejected=lambda row, place: False, epsilon=1e-6
) -> list[list[float]]:
    """Eq. 6 by the definition, in Python floats, one token at a time."""

    def penalty(row: Rollout, places: range) -> float:
        return sum(BETA * (row.old_log_probs[t] - row.ref_log_prob[t]) for t in places if row.mask[t]) if kl else 0.0

    def rewards(row: Rollout) -> tuple[float, float]:
        of_p = row.perception - penalty(row, range(row.boundary))
        of_r = row.reasoning - penalty(row, range(row.boundary, len(row.mask)))
        return (of_p, of_r) if separate else (of_p + of_r, of_p + of_r)

    def advantage(row: Rollout, process: int) -> float:
        judged = process == 0 or not separate
        group = [other for other in rows if other.uid == row.uid]
        values = [rewards(other)[process] for other in group if other.valid or not judged]
        if judged and not row.valid:
            return 0.0
        if len(group) == 1:
            return rewards(row)[process] / (1 + epsilon)
        if len(values) < 2:
            return 0.0
        return (rewards(row)[process] - statistics.mean(values)) / (statistics.stdev(values) + epsilon)

    return [
        [
            advantage(row, 0 if t < row.boundary else 1) if row.mask[t] and not rejected(row, t) else 0.0
            for t in range(len(row.mask))
        ]
        for row in rows
    ]


def assert_equal(found: list[list[float]], expected: list[list[float]]) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=2e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("separate", [True, False])
def test_advantages_are_those_of_the_slow_loop(queue, seed, separate):
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


def test_the_other_trainers_share_the_seam(queue):
    rows = rollouts(1)
    batch = put(rows)
    for name in ("p2r_colocate_async", "p2r_separate_async"):
        make_trainer(cls=get_trainer_cls(name))._compute_advantage(batch, {})
        assert_equal(get(batch.keys, "advantages")[0], slow(rows))


def test_kl_penalty_in_the_reward(queue):
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


def test_rejection_sampling_takes_tokens_and_leaves_the_rest(queue):
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


def test_rejection_sampling_together_with_the_kl_penalty(queue):
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


def test_metrics_of_the_step_by_hand(queue):
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


def test_grpo_is_one_override_away_and_is_verls_own(queue):
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


def test_a_validation_without_its_judge_ends_the_run():
    metrics = validated([1, 1, 1, 0], ["", "", "", "timed out"])
    assert metrics["val-aux/toy/perception_valid/mean@1"] == 0.75
    assert not any("judge_error" in name for name in metrics)  # a text
    assert validated([None, None], [None, None])["val-core/toy/reward/mean@1"] == 1.0
    assert validated([1, 1], [])["val-core/toy/reward/mean@1"] == 1.0  # a manager of one's own without reasons
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


def test_a_dumped_validation_is_left_as_verl_makes_it(tmp_path):
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


# Group filtering, through verl's replay buffer


def put_group(uid: str, rewards: list[tuple[float, float]]) -> None:
    """One finished prompt with its responses."""
    rows = rollouts(12, groups=[(uid, len(rewards))])
    for row, (perception, reasoning) in zip(rows, rewards, strict=True):
        row.perception, row.reasoning = perception, reasoning
    put(rows)
    tq.kv_batch_put(
        keys=[uid], partition_id="train", tags=[{"is_prompt": True, "status": "finished", "global_steps": 2}]
    )


def replay_buffer(metric: str) -> ReplayBuffer:
    return ReplayBuffer(
        trainer_mode="sync",
        trainer_config=make_config().trainer.v1.sync,
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs={},
        poll_interval=0.01,
        refill_fn=lambda count: pytest.fail(f"{count} prompts asked for: a group was dropped that should be kept"),
        filter_groups_metric=metric,
        train_batch_size=3,
        gen_batch_size=1,
    )


def test_a_group_is_kept_unless_both_rewards_are_constant(queue):
    put_group("sum", [(1.0, 0.0), (0.0, 1.0)])
    put_group("perception", [(0.2, 1.0), (0.2, 1.2), (0.2, 1.0)])
    put_group("reasoning", [(1.0, 0.3), (1.2, 0.3), (1.0, 0.3)])
    put_group("neither", [(1.2, 0.1 + 0.2), (1.2, 0.3), (1.2, 0.3)])  # 0.1 + 0.2 and 0.3 are one reward
    batch, metrics = replay_buffer("both_rewards").sample(global_steps=3, partition_id="train", batch_size=3)
    assert {key.split("_")[0] for key in batch.keys} == {"sum", "perception", "reasoning"}
    assert metrics["training/filter_groups/evicted_samples"] == 1
    make_trainer()._compute_advantage(batch, {})


def test_the_summed_reward_would_drop_a_group_that_still_teaches(queue):
    put_group("sum", [(1.0, 0.0), (0.0, 1.0)])
    buffer = replay_buffer("reward")
    buffer._sync_metadata_from_transfer_queue()
    assert buffer._dapo_filtered_keys("train")[0] == {"sum"}


# What is refused before the run starts


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.reward_manager.name=naive"], "'naive'.*set reward.reward_manager.name=p2r"),
        (["reward.reward_model.enable=True"], "colocated reward model.*enable_resource_pool=True.*or judge over a URL"),
        (
            ["reward.reward_model.enable=True", "reward.reward_model.enable_resource_pool=True"],
            "leave the reward manager 'p2r' out.*reward.reward_model.enable=False",
        ),
        (
            ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=acc"],
            "'acc'.*constant.*algorithm.filter_groups.metric=both_rewards",
        ),
        (["algorithm.filter_groups.enable=True"], "'reward'.*algorithm.filter_groups.metric=both_rewards"),
        (
            ["algorithm.p2r.separate=True", "algorithm.p2r.perception.enabled=False"],
            "separate is true but perception.enabled is false.*set separate: null",
        ),
        (["algorithm.p2r.perception.enabled=False", "algorithm.p2r.reasoning.enabled=False"], "switch at least one on"),
        (["algorithm.p2r.judge.name=oracle"], "'oracle' is unknown: use one of .*facts.*module:Class"),
        (["algorithm.p2r.judge.name=no.such:Judge"], "cannot be imported"),
        (["+algorithm.p2r.judge.kwargs.url=x"], "kwargs does not fit judge 'facts'.*it takes"),
        (["p2r/judge=openai"], "algorithm.p2r.judge.kwargs.model is not set"),
        (["p2r/judge=openai", "algorithm.p2r.judge.kwargs={model:m,base_urls:[here]}"], "'here' is not a URL"),
        (["algorithm.p2r.judge.name=verl"], "judge.name is verl, which needs reward.reward_model.enable=True"),
        (["+algorithm.p2r.seperate=False"], "algorithm.p2r.seperate does not exist: did you mean separate"),
        (["+algorithm.p2r.reasoning.length.min=1"], "algorithm.p2r.reasoning.length.min does not exist"),
    ],
)
def test_a_config_that_cannot_work_is_refused_with_the_remedy(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_config(make_config(*overrides))


def test_configs_that_can_work_are_accepted():
    assert check_config(make_config()).separated
    check_config(make_config("algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=both_rewards"))
    pool = ["reward.reward_model.enable=True", "reward.reward_model.enable_resource_pool=True"]
    check_config(make_config(*pool, "reward.custom_reward_function.path=judge.py"))
    check_config(make_config("p2r/judge=openai", "algorithm.p2r.judge.kwargs.model=m"))
    check_config(make_config("p2r/judge=verl", "reward.reward_model.model_path=judge"))
    check_config(make_config("~algorithm.p2r"))
    check_config(make_config("algorithm.adv_estimator=grpo", "algorithm.p2r.perception.enabled=False"))


def started(monkeypatch, *overrides: str):
    """A trainer whose `__init__` and `on_init_end` ran, without verl's own part of them."""
    monkeypatch.setattr(PPOTrainer, "__init__", lambda self, config: setattr(self, "config", config))
    monkeypatch.setattr(PPOTrainerSync, "on_init_end", lambda self: None)
    trainer = P2RTrainerSync(make_config("trainer.v1.trainer_mode=p2r_sync", *overrides))
    return trainer


def openai_at(server) -> list[str]:
    kwargs = f"algorithm.p2r.judge.kwargs={{model:judge,base_urls:['{server.base_url}'],deadline_s:2,timeout_s:1}}"
    return ["p2r/judge=openai", kwargs, "algorithm.p2r.judge.kwargs.connect_timeout_s=1"]


def test_a_healthy_judge_lets_the_run_begin(monkeypatch, judge_server):
    started(monkeypatch, *openai_at(judge_server))
    assert [call.outcome for call in judge_server.calls()] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"yes_when": "."}, "the known No got Yes: As asked"),
        ({"yes_when": "no such text"}, "the known Yes got No: As asked"),
        ({"api_key": "another"}, "HTTP 401.*the server rejected the API key in \\$OPENAI_API_KEY"),
        ({"models": ["another"]}, "HTTP 404.*the server has no model 'judge'"),
        (
            {"shares": {"no_judgement": 1.0}},
            "the known Yes got no verdict: .*no judgement in the reply: 'I cannot",
        ),
        ({"shares": {"hang": 1.0}}, "no usable reply within 2 s; last failure: .*did not reply within 1 s"),
    ],
)
def test_a_judge_that_fails_its_health_check_ends_the_run_before_it_begins(monkeypatch, judge_server, script, message):
    judge_server.control(**script)
    monkeypatch.setattr(PPOTrainer, "__init__", lambda *_: pytest.fail("verl's trainer was built"))
    with pytest.raises(
        RuntimeError, match=rf"(?s)judge 'openai' fails its health check.*{message}.*health_check=False"
    ):
        P2RTrainerSync(make_config("trainer.v1.trainer_mode=p2r_sync", *openai_at(judge_server)))


@pytest.mark.parametrize(
    "override", ["algorithm.p2r.judge.health_check=False", "algorithm.p2r.perception.enabled=False"]
)
def test_a_judge_is_not_checked_when_it_is_not_to_be(monkeypatch, judge_server, override):
    started(monkeypatch, *openai_at(judge_server), override)
    assert not judge_server.calls()


def test_verls_own_judge_is_checked_once_its_servers_are_there(monkeypatch, judge_server):
    trainer = started(monkeypatch, "p2r/judge=verl", "reward.reward_model.model_path=judge")
    assert not judge_server.calls()
    trainer.reward_loop_manager = SimpleNamespace(reward_router_address=judge_server.url.removeprefix("http://"))
    trainer.on_init_end()
    assert len(judge_server.calls()) == 2


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_verl_sees_the_name_of_its_own_mode(monkeypatch, mode):
    """verl compares that name and indexes `trainer.v1` with it; an unknown one would silently mean asynchronous."""
    seen = []

    def init(self, config):
        self.config = config
        seen.append(config.trainer.v1[config.trainer.v1.trainer_mode])

    monkeypatch.setattr(PPOTrainer, "__init__", init)
    config = make_config(
        f"trainer.v1.trainer_mode=p2r_{mode}",
        "trainer.v1.separate_async.parameter_sync_step=1",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
    )
    trainer = get_trainer_cls(f"p2r_{mode}")(config)
    assert config.trainer.v1.trainer_mode == mode
    assert seen == [config.trainer.v1[mode]]
    assert trainer.p2r == check_config(config)


def test_an_unworkable_config_is_refused_before_verl_builds_anything(monkeypatch):
    monkeypatch.setattr(PPOTrainer, "__init__", lambda *_: pytest.fail("verl's trainer was built"))
    with pytest.raises(ValueError, match=r"reward\.reward_manager\.name"):
        P2RTrainerSync(make_config("reward.reward_manager.name=naive"))


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [([], ["train", "val"]), (["algorithm.p2r.perception.enabled=False"], [])],
    ids=["facts needed", "perception off"],
)
def test_datasets_are_asked_for_facts_when_the_judge_needs_them(monkeypatch, overrides, asked):
    """A row without facts would otherwise fail inside an agent loop, where verl goes on without its prompt."""
    calls = []

    def init_dataloader(self):
        self.train_dataset = SimpleNamespace(require_facts=lambda: calls.append("train"))
        self.val_dataset = SimpleNamespace(require_facts=lambda: calls.append("val"))

    monkeypatch.setattr(PPOTrainer, "_init_dataloader", init_dataloader)
    make_trainer(*overrides)._init_dataloader()
    assert calls == asked
