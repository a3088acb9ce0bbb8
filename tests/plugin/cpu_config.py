# SPDX-License-Identifier: Apache-2.0
"""The CPU config as the tests use it."""

from hydra import compose, initialize_config_module
from omegaconf import DictConfig


def make_config(*overrides: str) -> DictConfig:
    """The CPU config with sensible sizes; fresh for each call."""
    sizes = ["data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    with initialize_config_module("verl_p2r.config", version_base=None):
        return compose("p2r_ppo_cpu", [*sizes, *overrides])
