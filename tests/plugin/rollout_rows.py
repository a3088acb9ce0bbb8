# SPDX-License-Identifier: Apache-2.0
"""Rollouts in TransferQueue as verl's agent loop worker writes them, a bare trainer, and PA-GRPO as a slow loop."""

import random
import statistics
from types import SimpleNamespace

import pytest
import torch
import transfer_queue as tq
from cpu_config import make_config
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.trainer.ppo.core_algos import get_kl_controller
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_p2r.plugin.rl.reward_manager import _both
from verl_p2r.plugin.rl.trainer import P2RTrainerSync, check_config

BETA = 0.1  # factor of the KL penalty in the reward


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
