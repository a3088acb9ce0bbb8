# SPDX-License-Identifier: Apache-2.0
"""verl's three v1 trainers with a mixin that passes the process rewards to the estimator.

The reward manager puts numbers per response into `reward_extra_info`, which reaches TransferQueue in `extra_fields`.
verl's `_compute_advantage` does not fetch them. The mixin fetches them, makes them visible to the estimator, and calls
verl's method. Remove that part when verl passes `non_tensor_batch` to estimators (verl PR 7473).
"""

import asyncio
import logging
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.core_algos import AdvantageEstimator
from verl.trainer.ppo.v1 import (
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    register_trainer,
)

from verl_p2r.judge import check_judge
from verl_p2r.plugin.entry_points import check_entry_points
from verl_p2r.plugin.fsdp.balance import keep_groups_together
from verl_p2r.plugin.fsdp.switch import share_prefix
from verl_p2r.plugin.fsdp.vision_tower import freeze_actor
from verl_p2r.plugin.rl.advantage import ProcessRewards, process_rewards
from verl_p2r.plugin.rl.bypass import check_bypass
from verl_p2r.plugin.rl.checkpoints import correct_tracker, save_place
from verl_p2r.plugin.rl.generations import score_lines
from verl_p2r.plugin.rl.judge_watch import JudgeWatch
from verl_p2r.plugin.rl.metrics import process_metrics
from verl_p2r.plugin.rl.self_judge_loop import check_loop
from verl_p2r.plugin.rl.verl_judge import asks_verl, make_judge
from verl_p2r.plugin.rl.watchdog import Watchdog
from verl_p2r.settings import P2RSettings

logger = logging.getLogger(__name__)

MANAGER = "p2r"
POLL_S = 0.2  # seconds between two looks at the rollouts
_BASE_MODES = {"p2r_sync": "sync", "p2r_colocate_async": "colocate_async", "p2r_separate_async": "separate_async"}


def check_config(config: DictConfig) -> P2RSettings:
    """Refuse at start what would fail in the middle of a run, perhaps silently.

    Args:
        config: config of verl's PPO trainer.

    Returns:
        Its node `algorithm.p2r`.

    Raises:
        ValueError: the config cannot work; the message gives the reason and the remedy.
    """
    check_entry_points()
    settings = P2RSettings.from_mapping(config.algorithm.get("p2r") or {})
    check_loop(config, settings, make_judge(config, settings))
    check_bypass(config)
    manager = config.reward.reward_manager
    if manager.source == "register" and manager.name != MANAGER:
        raise ValueError(
            f"reward.reward_manager.name is {manager.name!r}, but the p2r trainers read the two process rewards that "
            f"the reward manager {MANAGER!r} writes: set reward.reward_manager.name={MANAGER}"
        )
    reward_model = config.reward.reward_model
    if reward_model.enable and not reward_model.enable_resource_pool:
        raise ValueError(
            "reward.reward_model.enable=True without its own resource pool is a colocated reward model; verl then "
            "scores after sampling and passes neither ground truth nor extra_info to the reward manager: set "
            "reward.reward_model.enable_resource_pool=True (with n_gpus_per_node and nnodes), or judge over a URL"
        )
    if reward_model.enable and config.reward.custom_reward_function.path is None:
        raise ValueError(
            "reward.reward_model.enable=True without reward.custom_reward_function.path makes verl ask the model for a "
            f"scalar and leave the reward manager {MANAGER!r} out: choose p2r/judge=verl, which points it at a "
            "function (the manager does not call it), or set reward.reward_model.enable=False"
        )
    estimator = config.algorithm.adv_estimator
    ours = settings.cross_credit or settings.separate or settings.segment_weighting != "token"
    if ours and estimator in [known.value for known in AdvantageEstimator]:
        raise ValueError(
            f"algorithm.adv_estimator is {estimator!r}, verl's own, which reads none of algorithm.p2r.cross_credit, "
            "separate and segment_weighting: set algorithm.adv_estimator=pa_grpo, or cross_credit=0, separate=null and "
            "segment_weighting=token"
        )
    filter_groups = config.algorithm.get("filter_groups") or {}
    if filter_groups.get("enable") and filter_groups.get("metric") != "both_rewards":
        raise ValueError(
            f"algorithm.filter_groups.metric is {filter_groups.get('metric')!r}: verl drops a group whose metric is "
            "constant, and only both_rewards is constant exactly when both process rewards are: set "
            "algorithm.filter_groups.metric=both_rewards"
        )
    return settings


_Trainer: Any = object  # one of verl's trainers, behind the mixin


class ProcessAware(_Trainer):
    """Mixin over a v1 trainer of verl, see the module."""

    _generations: tuple[list[str], list[str], list[float]] | None = None  # kept until their rewards are known

    def __init__(self, config: DictConfig) -> None:
        self.p2r = check_config(config)
        freeze_actor(config)
        share_prefix(config)
        if not asks_verl(self.p2r):  # its servers do not run yet
            self._check_judge(config)
        # verl compares this name and indexes trainer.v1 with it, so it must be the name of verl's own mode.
        mode = config.trainer.v1.trainer_mode
        with open_dict(config):
            config.trainer.v1.trainer_mode = _BASE_MODES[mode]
        self.run: Any = config.trainer.get("p2r") or {}
        self.watchdog = Watchdog(self.run.get("stall_timeout_s"))
        super().__init__(config)

    def _build_replay_buffer(self):
        """Wait for the rollouts as verl does, but look more often: verl's 2 s cost each step a second on average."""
        buffer = super()._build_replay_buffer()
        if self.trainer_mode != "separate_async":  # that trainer compares its waiting time with the interval
            buffer.poll_interval = min(buffer.poll_interval, POLL_S)
        return buffer

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        judges = (self.p2r.judge.name, (self.p2r.judge.kwargs.get("compare_with") or {}).get("name"))
        if "facts" in judges and self.p2r.perception.enabled:
            for dataset in (self.train_dataset, self.val_dataset):
                if hasattr(dataset, "require_facts"):  # a user's own dataset checks its rows itself
                    dataset.require_facts()

    def _check_judge(self, config: DictConfig, reward_router_address: str | None = None) -> None:
        """Ask the judge two questions with known answers before it is used for training or validation."""
        if not (self.p2r.judge.health_check and self.p2r.perception.enabled):
            return
        judge = make_judge(config, self.p2r, reward_router_address)

        async def check() -> None:
            try:
                await check_judge(judge, self.p2r.judge.name)
            finally:
                if hasattr(judge, "aclose"):
                    await judge.aclose()

        asyncio.run(check())

    def _load_checkpoint(self):
        if self.config.trainer.resume_mode == "auto":
            correct_tracker(self.config.trainer.default_local_dir)
        super()._load_checkpoint()

    def _save_checkpoint(self):
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        save_place(self.train_dataloader, folder, "data.pt")
        super()._save_checkpoint()

    def on_init_end(self) -> None:
        """Check the judge that verl serves, then do as verl does."""
        if asks_verl(self.p2r):
            self._check_judge(self.config, self.reward_loop_manager.reward_router_address)
        with self.watchdog.phase("first weight sync"):
            super().on_init_end()

    def on_step_end(self) -> None:
        """Do as verl does, timed by the watchdog."""
        with self.watchdog.phase("weight sync"):
            super().on_step_end()

    def step(self, metrics: Any, timing_raw: Any) -> Any:
        """Do a training step as verl does, timed by the watchdog."""
        with self.watchdog.phase("training step"):
            return super().step(metrics, timing_raw)

    def _validate(self):
        with self.watchdog.phase("validation"):
            return super()._validate()

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict[str, Any], *args, **kwargs) -> KVBatchMeta:
        batch = super()._balance_batch(batch, metrics, *args, **kwargs)
        if self.run.get("shared_prefix", False):
            ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
            metrics.update(keep_groups_together(batch, ranks))
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields", "rm_scores"]
        )
        _refuse_several_outputs(batch.keys)
        infos = reward_infos(data)
        real = [i for i, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        step = process_metrics([infos[i] for i in real], [batch.keys[i].rsplit("_", 2)[0] for i in real])
        step["p2r/lost"] = self._lost_share(len(real))
        if (one_sided := self._judge_watch.look([infos[i] for i in real])) is not None:
            step["p2r/judge/one_sided"] = one_sided
        metrics.update(step)
        self._check_losses(step)
        self._check_verdicts([infos[i] for i in real], "this step's")
        rewards = ProcessRewards(
            perception=torch.tensor([info["perception_reward"] for info in infos], dtype=torch.float32),
            reasoning=torch.tensor([info["reasoning_reward"] for info in infos], dtype=torch.float32),
            perception_length=torch.tensor([info["perception_tokens"] for info in infos]),
            perception_valid=torch.tensor([bool(info["perception_valid"]) for info in infos]),
            token_level_scores=data["rm_scores"].to_padded_tensor(0.0),
        )
        with process_rewards(rewards):
            return super()._compute_advantage(batch, metrics)

    @cached_property
    def _judge_watch(self) -> JudgeWatch:
        return JudgeWatch(self.p2r.judge.name)

    def _lost_share(self, rollouts: int) -> float:
        """Share of the requested rollouts that are missing; verl logs an error in a rollout and goes on without it."""
        prompts = self.config.data.train_batch_size // self.parameter_sync_step
        return 1 - rollouts / (prompts * self.config.actor_rollout_ref.rollout.n)

    def _check_losses(self, step: dict[str, float]) -> None:
        if step["p2r/lost"] > self.run.get("max_lost_share", 1.0):
            raise RuntimeError(
                f"{step['p2r/lost']:.1%} of this step's rollouts failed, above trainer.p2r.max_lost_share="
                f"{self.run.max_lost_share:.1%}: look for 'Error in _run_prompt' above. A prompt longer than "
                "data.max_prompt_length is one cause, a judge that raises another"
            )

    def _check_verdicts(self, infos: list[dict[str, Any]], whose: str) -> None:
        failed = [info.get("judge_error") or "no reason given" for info in infos if not info["perception_valid"]]
        limit = self.p2r.judge.max_no_verdict_share
        if infos and len(failed) / len(infos) > limit:
            reasons = "".join(f"\n  {count} x {why}" for why, count in Counter(failed).most_common(5))
            raise RuntimeError(
                f"the judge {self.p2r.judge.name!r} gave no verdict on {len(failed) / len(infos):.1%} of {whose} "
                f"responses, above algorithm.p2r.judge.max_no_verdict_share={limit:.1%}: check that the judge is up "
                f"and answers in the form its prompt asks for. Its errors:{reasons}"
            )

    def _maybe_log_val_generations(self, inputs, outputs, scores):
        """Wait for the process rewards, which verl passes to `_val_metrics_update` only."""
        self._generations = inputs, outputs, scores

    def _val_metrics_update(self, data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs):
        """Log the generations with both rewards, and apply the no-verdict limit to validation too."""
        if self._generations is not None:
            inputs, outputs, scores = self._generations
            self._generations = None
            super()._maybe_log_val_generations(inputs, outputs, score_lines(scores, reward_extra_infos_dict))
        valid = reward_extra_infos_dict.get("perception_valid") or []
        errors = reward_extra_infos_dict.get("judge_error") or [None] * len(valid)
        infos = [
            {"perception_valid": ok, "judge_error": error}
            for ok, error in zip(valid, errors, strict=True)
            if ok is not None  # None: a row of another reward manager
        ]
        self._check_verdicts(infos, "the validation's")
        return super()._val_metrics_update(data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs)

    def _dump_generations(self, inputs, outputs, gts, scores, reward_extra_infos_dict, dump_path):
        """Add process rewards, tokens and advantages to verl's dump of a training rollout."""
        if "reward" not in reward_extra_infos_dict:  # verl passes the extras for validation only
            reward_extra_infos_dict = {**reward_extra_infos_dict, **self._rollout_columns(reward_extra_infos_dict)}
        super()._dump_generations(inputs, outputs, gts, scores, reward_extra_infos_dict, dump_path)

    def _rollout_columns(self, dumped: dict[str, list]) -> dict[str, list]:
        data = tq.kv_batch_get(
            keys=dumped["uid"], partition_id="train", select_fields=["extra_fields", "responses", "advantages"]
        )
        infos = reward_infos(data)
        columns: dict[str, list] = {key: [info[key] for info in infos] for key in infos[0]}
        columns["tokens"] = [[self.tokenizer.decode([i]) for i in ids.tolist()] for ids in data["responses"].unbind()]
        columns["advantages"] = [[round(a, 4) for a in row.tolist()] for row in data["advantages"].unbind()]
        return columns


def reward_infos(data: TensorDict) -> list[dict[str, Any]]:
    """Read `reward_extra_info` of each row of a TransferQueue batch.

    Args:
        data: with `extra_fields`.

    Returns:
        One mapping per row, in the order of the batch.

    Raises:
        RuntimeError: a row has none of our keys.
    """
    infos = [getattr(fields, "data", fields).get("reward_extra_info") or {} for fields in list(data["extra_fields"])]
    if any("perception_reward" not in info for info in infos):
        raise RuntimeError(
            "a response carries no process rewards: it was not scored by the reward manager p2r. An agent loop that "
            "sets reward_score itself bypasses the manager: let it leave reward_score unset"
        )
    return infos


def _refuse_several_outputs(keys: list[str]) -> None:
    several = [key for key in keys if key.rsplit("_", 2)[-1] != "0"]
    if several:
        raise ValueError(
            f"session {several[0]} has several outputs; their rewards belong to the last one only, and PA-GRPO would "
            "count each as a separate rollout: use an agent loop that returns one output per session, such as "
            "single_turn_agent"
        )


@register_trainer("p2r_sync")
class P2RTrainerSync(ProcessAware, PPOTrainerSync):
    """verl's `sync` trainer with process rewards."""


@register_trainer("p2r_colocate_async")
class P2RTrainerColocateAsync(ProcessAware, PPOTrainerColocateAsync):
    """verl's `colocate_async` trainer with process rewards."""


@register_trainer("p2r_separate_async")
class P2RTrainerSeparateAsync(ProcessAware, PPOTrainerSeparateAsync):
    """verl's `separate_async` trainer with process rewards."""
