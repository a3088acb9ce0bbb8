# SPDX-License-Identifier: Apache-2.0
"""From verl's config, with verl 0.9.1's defaults in it, to the planner's `Job`."""

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pyarrow.parquet import read_metadata
from verl.workers.config import FSDPEngineConfig, RolloutConfig

from verl_p2r.judge.combined import named_judges
from verl_p2r.judge.self_judge import AGENT_LOOP
from verl_p2r.media.plan import VisionSpec
from verl_p2r.planner import GPUS, Engine, Job, Judging, Lengths, Line, Rollout, SecondAnswers
from verl_p2r.planner.model_shape import ModelShape, find_shape
from verl_p2r.plugin.fsdp.switch import OFF, share_prefix
from verl_p2r.plugin.media.media_cache import cache_settings
from verl_p2r.plugin.plan.launches import Launch
from verl_p2r.plugin.plan.tokens import Options, counted, lengths_of, listed, real_rows
from verl_p2r.plugin.plan.verl_config import check_config, dataclass_of
from verl_p2r.settings import P2RSettings
from verl_p2r.sizes import GIB

SHORT_ANSWER = 8  # tokens of an answer with its closing tag and the end of the turn, about
DTYPE_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}


@dataclass(frozen=True)
class Plan:
    """What `verl-p2r plan` prints.

    Args:
        job: the run.
        tokens: lines about the tokens of a row.
        shape_source: where the model's shape comes from.
        faults: errors that are certain already.
    """

    job: Job
    tokens: list[Line]
    shape_source: str
    faults: list[str]


def plan_of(launch: Launch, options: Options) -> Plan:
    """Turn a launch into a plan.

    Args:
        launch: with its config; references in it are resolved.
        options: from the command line.

    Raises:
        ValueError: the model is unknown, the engine is not FSDP, or verl could not run what the config says.
    """
    config = launch.config
    OmegaConf.resolve(config)
    check_config(launch)
    model = launch.model
    shape, spec, source = _shape(options.model, model.path)
    processor = _processor(model.path) if options.rows or spec is None else None
    if processor is not None:
        spec = VisionSpec.from_processor(processor, config.data.get("mm_processor_kwargs"))
    if spec is None:
        raise ValueError(f"{model.path}: its folder has no processor of a known family: name a model with --model")
    faults: list[str] = []
    usual, tokens = lengths_of(launch, spec, options)
    real = real_rows(launch, spec, processor, options.rows, faults) if processor is not None else []
    if real:
        usual, tokens = counted(launch, usual, tokens, real)
    make = _rl_job if launch.trains_rl else _sft_job
    job = make(launch, shape, usual, options)
    faults += _rl_faults(config, spec, job) if launch.trains_rl else []
    return Plan(job, tokens, source, faults)


def _shape(named: str | None, path: str) -> tuple[ModelShape, VisionSpec | None, str]:
    try:
        shape, spec, source = find_shape(named or path)
    except ValueError as error:
        hint = "" if named else ". Name a published model of the same shape with --model"
        raise ValueError(f"{error}{hint}") from error
    return shape, spec, source


def _processor(path: str) -> Any:
    """The model's processor if it is a local folder; no hub is asked."""
    from verl.utils import hf_processor

    folder = Path(path).expanduser()
    return hf_processor(str(folder)) if folder.is_dir() else None


def _sft_job(launch: Launch, shape: ModelShape, lengths: Lengths, options: Options) -> Job:
    config = launch.config
    data, per_node = config.data, config.trainer.n_gpus_per_node
    budget = data.max_token_len_per_gpu if data.use_dynamic_bsz else data.micro_batch_size_per_gpu * data.max_length
    settings = dataclass_of(config, "engine")
    engine = _engine(settings, config.model, launch.gpus, per_node, budget, budget)
    engine = replace(engine, frozen_vision=bool(settings.get("freeze_vision_tower", False)))
    return Job(shape, GPUS[options.gpu], lengths, engine, prompts=data.train_batch_size, steps=_steps(config))


def _steps(config: DictConfig) -> int | None:
    """Steps of the run, from the rows of its files if they are local."""
    trainer, files = config.trainer, listed(config.data.train_files)
    if trainer.total_training_steps:
        return trainer.total_training_steps
    if not all(file.endswith(".parquet") and Path(file).is_file() for file in files):
        return None
    return sum(read_metadata(file).num_rows for file in files) // config.data.train_batch_size * trainer.total_epochs


def _rl_job(launch: Launch, shape: ModelShape, lengths: Lengths, options: Options) -> Job:
    config, trainer = launch.config, launch.config.trainer
    actor, rollout = (dataclass_of(config, f"actor_rollout_ref.{part}") for part in ("actor", "rollout"))
    gpus, settings = trainer.nnodes * trainer.n_gpus_per_node, P2RSettings.from_mapping(config.algorithm.p2r)
    correction = config.algorithm.get("rollout_correction") or {}
    cache, workers = cache_settings(config.data), rollout.agent.num_workers
    return Job(
        shape=shape,
        gpu=GPUS[options.gpu],
        lengths=lengths,
        engine=_actor_engine(config, actor, rollout, gpus, lengths),
        prompts=config.data.train_batch_size,
        samples=rollout.n,
        steps=_steps(config),
        rollout=_rollout(rollout, shape, gpus),
        reference=bool(actor.use_kl_loss or config.algorithm.use_kl_in_reward),
        old_log_prob=not correction.get("bypass_mode", False),
        judge=_judge(config, settings),
        second_answers=_second_answers(rollout, settings),
        pixel_store=cache.pixels_gib * GIB * workers,
        media_store=cache.memory_gib * GIB * workers,
    )


def _actor_engine(config: DictConfig, actor: Any, rollout: Any, gpus: int, lengths: Lengths) -> Engine:
    if actor.use_dynamic_bsz:
        update, infer = actor.ppo_max_token_len_per_gpu, rollout.log_prob_max_token_len_per_gpu
    else:
        update = actor.ppo_micro_batch_size_per_gpu * lengths.longest
        infer = rollout.log_prob_micro_batch_size_per_gpu * lengths.longest
    engine = _engine(actor.engine, config.actor_rollout_ref.model, gpus, config.trainer.n_gpus_per_node, update, infer)
    switches = config.trainer.get("p2r") or {}
    return replace(
        engine,
        mini_batches=max(1, ceil(config.data.train_batch_size / actor.ppo_mini_batch_size)),
        epochs=actor.ppo_epochs,
        entropy=bool(actor.calculate_entropy or actor.entropy_coeff),
        frozen_vision=bool(actor.get("freeze_vision_tower", False)),
        shares_prefix=bool(switches.get("shared_prefix", False)),
        features=switches.get("vision_features_gib", 0) * GIB,
    )


def _engine(fsdp: FSDPEngineConfig, model: DictConfig, gpus: int, per_node: int, update: float, infer: float) -> Engine:
    precision = fsdp.get("mixed_precision") or {}
    excluded = model.exclude_modules
    return Engine(
        gpus=gpus,
        per_node=per_node,
        fsdp_size=fsdp.fsdp_size if 0 < fsdp.fsdp_size < gpus else gpus,
        ulysses_size=fsdp.ulysses_sequence_parallel_size,
        param_bytes=_bytes_of(fsdp.model_dtype or "fp32", "model_dtype of the engine"),
        compute_bytes=_bytes_of(precision.get("param_dtype", "bf16"), "mixed_precision.param_dtype of the engine"),
        param_offload=fsdp.param_offload,
        optimizer_offload=fsdp.optimizer_offload,
        policy_offload=fsdp.strategy == "fsdp2" and fsdp.offload_policy,
        checkpointing=model.enable_gradient_checkpointing,
        tokens=update,
        infer_tokens=infer,
        fused=model.use_fused_kernels,
        defers_sync=fsdp.use_no_sync_for_gradient_accumulation,
        lora_rank=model.lora_rank or 0,
        fsdp2=fsdp.strategy == "fsdp2",
        lora_vision=not (isinstance(excluded, str) and re.fullmatch(excluded, "model.visual.blocks.0.attn.qkv")),
    )


def _bytes_of(dtype: str, key: str) -> int:
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"{key} is {dtype!r}: give one of {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def _rollout(rollout: RolloutConfig, shape: ModelShape, gpus: int) -> Rollout:
    apart = rollout.nnodes > 0
    return Rollout(
        gpus=rollout.nnodes * rollout.n_gpus_per_node if apart else gpus,
        tensor=rollout.tensor_model_parallel_size * rollout.pipeline_model_parallel_size,
        share=rollout.gpu_memory_utilization,
        sleeps=rollout.free_cache_engine and rollout.get("enable_sleep_mode", True),
        max_length=rollout.max_model_len or shape.context,  # vLLM's own default
        max_rows=rollout.max_num_seqs,
        dtype_bytes=_bytes_of(rollout.dtype, "rollout.dtype"),
        bucket=rollout.checkpoint_engine.update_weights_bucket_megabytes * 2**20,
        apart=apart,
    )


def _judge(config: DictConfig, settings: P2RSettings) -> Judging | None:
    """The calls of all model judges, each of which judges all responses, as many at a time as the slowest one takes."""
    judges = named_judges(settings.judge.name, settings.judge.kwargs)
    models = [options for name, options in judges if name not in ("facts", "self") and "members" not in options]
    if not models or not settings.perception.enabled:
        return None
    rows = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    in_flight = min(options.get("concurrency", 32) for options in models) * config.reward.num_workers
    return Judging(rows * len(models), in_flight * len(models))


def _second_answers(rollout: RolloutConfig, settings: P2RSettings) -> SecondAnswers | None:
    """The second answers, with observations and thinking from the middle of their length bands."""
    if rollout.agent.default_agent_loop != AGENT_LOOP or not settings.perception.enabled:
        return None
    observation, thinking = (
        (band.minimum + band.maximum) / 2 for band in (settings.perception.length, settings.reasoning.length)
    )
    second = settings.judge.second_answer
    answer = thinking + SHORT_ANSWER if second.think else SHORT_ANSWER
    return SecondAnswers(observation, min(answer, second.max_tokens))


def _rl_faults(config: DictConfig, spec: VisionSpec, job: Job) -> Iterator[str]:
    """Errors that only the config shows."""
    yield from _prefix_faults(config, job)
    actor = config.actor_rollout_ref.actor
    if config.data.image_patch_size != spec.patch_size:
        yield f"data.image_patch_size is {config.data.image_patch_size}, but the model's patches have {spec.patch_size}"
    if config.data.train_batch_size % actor.ppo_mini_batch_size:
        yield (
            f"data.train_batch_size={config.data.train_batch_size} is not a multiple of "
            f"actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}"
        )
    settings = P2RSettings.from_mapping(config.algorithm.p2r)
    bands = settings.perception.length.maximum + settings.reasoning.length.maximum
    if settings.length_reward and bands >= config.data.max_response_length:
        yield (
            f"data.max_response_length={config.data.max_response_length} leaves no room for responses at the upper end "
            f"of the length bands, {bands} tokens and the answer: raise it"
        )
    if config.reward.reward_model.enable:
        judge = config.reward.reward_model
        if judge.n_gpus_per_node % judge.rollout.tensor_model_parallel_size:
            yield "reward.reward_model: n_gpus_per_node is not a multiple of rollout.tensor_model_parallel_size"


def _prefix_faults(config: DictConfig, job: Job) -> Iterator[str]:
    """What a run refuses at start about `trainer.p2r.shared_prefix`."""
    try:
        share_prefix(deepcopy(config))  # which it changes
    except ValueError as error:
        yield str(error)
    if job.engine.shares_prefix and job.shape.linear:
        yield f"shared_prefix does not work with linear-attention layers: train another family, {OFF}"
