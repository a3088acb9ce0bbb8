# SPDX-License-Identifier: Apache-2.0
"""verl's own dataclasses of a launch's config, and checks of the values that the planner computes with."""

from collections.abc import Iterator
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from verl_p2r.plugin.plan.launches import Launch

STRATEGIES = ("fsdp", "fsdp2")
RL = "actor_rollout_ref"
COUNTS = {  # whole numbers of at least 1
    True: (
        "data.train_batch_size",
        "data.max_prompt_length",
        "data.max_response_length",
        f"{RL}.actor.ppo_mini_batch_size",
        f"{RL}.actor.ppo_epochs",
        f"{RL}.actor.ulysses_sequence_parallel_size",
        f"{RL}.actor.fsdp_config.ulysses_sequence_parallel_size",
        f"{RL}.rollout.n",
        f"{RL}.rollout.tensor_model_parallel_size",
        f"{RL}.rollout.pipeline_model_parallel_size",
        f"{RL}.rollout.max_num_seqs",
        f"{RL}.rollout.agent.num_workers",
        f"{RL}.rollout.checkpoint_engine.update_weights_bucket_megabytes",
        "reward.num_workers",
        "trainer.nnodes",
        "trainer.n_gpus_per_node",
    ),
    False: (
        "data.train_batch_size",
        "data.max_length",
        "engine.ulysses_sequence_parallel_size",
        "trainer.nnodes",
        "trainer.n_gpus_per_node",
    ),
}


def check_config(launch: Launch) -> None:
    """Check the values of a launch that verl and the planner compute with.

    Args:
        launch: the launch.

    Raises:
        ValueError: the engine is not FSDP, or values are unusable; the message names all keys and what to give.
    """
    config = launch.config
    engine = f"{RL}.actor.strategy" if launch.trains_rl else "engine.strategy"
    strategy = OmegaConf.select(config, engine)
    if strategy not in STRATEGIES:
        raise ValueError(f"{engine} is {strategy!r}: only {' and '.join(STRATEGIES)} can be planned")
    wrong = [f"{key} is {_shown(config, key)}: give {remedy}" for key, remedy in _wrong(launch)]
    if wrong:
        raise ValueError("; ".join(wrong))


def dataclass_of(config: DictConfig, key: str) -> Any:
    """Build verl's dataclass of a node of its config.

    Args:
        config: the whole config.
        key: dotted key of the node.

    Raises:
        ValueError: verl refuses the node; the message gives verl's reason.
    """
    try:  # the checks of verl's dataclasses raise any of these
        return omega_conf_to_dataclass(OmegaConf.select(config, key))
    except (HydraException, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"{key}: verl refuses it: {error.__cause__ or error}") from error


def _wrong(launch: Launch) -> Iterator[tuple[str, str]]:
    """Keys with unusable values, and what each may be."""
    config = launch.config
    node = RL if launch.trains_rl else ""
    path = f"{node}.model.path".lstrip(".")
    if not isinstance(OmegaConf.select(config, path), str):
        yield path, "a folder or a published name"
    files = OmegaConf.select(config, "data.train_files")
    if not files or not isinstance(files, str | ListConfig):
        yield "data.train_files", "a file or a list of files"
    for key in (*COUNTS[launch.trains_rl], *_chosen_counts(launch)):
        if not _counts(config, key):
            yield key, "a whole number of at least 1"
    for key in _optional_counts(launch):
        if OmegaConf.select(config, key) is not None and not _counts(config, key):
            yield key, "null or a whole number of at least 1"
    size = f"{RL}.actor.fsdp_config.fsdp_size" if launch.trains_rl else "engine.fsdp_size"
    if not isinstance(OmegaConf.select(config, size), int) or not OmegaConf.select(config, size):
        yield size, "the number of GPUs that share the weights, or -1 for all"
    if launch.trains_rl:
        share, nodes = f"{RL}.rollout.gpu_memory_utilization", f"{RL}.rollout.nnodes"
        value = OmegaConf.select(config, share)
        if not isinstance(value, int | float) or not 0 < value <= 1:
            yield share, "a share above 0, at most 1"
        if OmegaConf.select(config, nodes) != 0 and not _counts(config, nodes):
            yield nodes, "0 to sample where the training runs, or a number of nodes"


def _chosen_counts(launch: Launch) -> Iterator[str]:
    """Keys of counts that only matter with the choices of this config."""
    config, data = launch.config, launch.config.data
    if config.trainer.total_training_steps is None:
        yield "trainer.total_epochs"
    if not launch.trains_rl:
        yield "data.max_token_len_per_gpu" if data.use_dynamic_bsz else "data.micro_batch_size_per_gpu"
        return
    if config.actor_rollout_ref.actor.use_dynamic_bsz:
        yield from (f"{RL}.actor.ppo_max_token_len_per_gpu", f"{RL}.rollout.log_prob_max_token_len_per_gpu")
    else:
        yield from (f"{RL}.actor.ppo_micro_batch_size_per_gpu", f"{RL}.rollout.log_prob_micro_batch_size_per_gpu")
    if config.actor_rollout_ref.rollout.nnodes:
        yield f"{RL}.rollout.n_gpus_per_node"
    if config.reward.reward_model.enable:
        model = "reward.reward_model"
        yield from (f"{model}.nnodes", f"{model}.n_gpus_per_node", f"{model}.rollout.tensor_model_parallel_size")
    if "concurrency" in (OmegaConf.select(config, "algorithm.p2r.judge.kwargs") or {}):
        yield "algorithm.p2r.judge.kwargs.concurrency"


def _optional_counts(launch: Launch) -> Iterator[str]:
    yield "trainer.total_training_steps"
    if launch.trains_rl:
        yield f"{RL}.rollout.max_model_len"


def _counts(config: DictConfig, key: str) -> bool:
    value = OmegaConf.select(config, key)
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _shown(config: DictConfig, key: str) -> str:
    value = OmegaConf.select(config, key)
    return "null" if value is None else repr(value)
