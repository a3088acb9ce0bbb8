# SPDX-License-Identifier: Apache-2.0
"""A start of verl, read from its command as torchrun and Hydra read it, or from the name of a config."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig
from torch.distributed.run import get_args_parser as get_torchrun_parser

CONFIGS = "verl_p2r.config"
PROGRAMS = ("python", "python3", "torchrun")
SHELLS = ("bash", "sh")
RL, SFT = "verl.trainer.main_ppo", "verl.trainer.sft_trainer"


@dataclass
class Launch:
    """A start of verl.

    Args:
        module: verl's module that runs.
        config_name: name of the config.
        overrides: Hydra overrides, as written.
        config: the config that Hydra makes of them.
        processes: processes of torchrun on all nodes; None without torchrun.
    """

    module: str
    config_name: str
    overrides: list[str]
    config: DictConfig
    processes: int | None = None

    @property
    def trains_rl(self) -> bool:
        """Whether it runs verl's PPO trainer; otherwise the SFT trainer."""
        return self.module == RL

    @property
    def model(self) -> DictConfig:
        """The config of the model that it trains."""
        return self.config.actor_rollout_ref.model if self.trains_rl else self.config.model

    @property
    def gpus(self) -> int:
        """GPUs of all resource pools together."""
        trainer = self.config.trainer
        if not self.trains_rl:
            return self.processes or trainer.nnodes * trainer.n_gpus_per_node
        rollout, judge = self.config.actor_rollout_ref.rollout, self.config.reward.reward_model
        pools = [trainer.nnodes * trainer.n_gpus_per_node, rollout.nnodes * rollout.n_gpus_per_node]
        return sum(pools) + (judge.nnodes * judge.n_gpus_per_node if judge.enable else 0)


def launch_of(what: str, rest: Sequence[str]) -> Launch:
    """Read a launch from the arguments of `verl-p2r plan`.

    Args:
        what: name of one of this package's configs, or the program of a command that starts verl.
        rest: Hydra overrides, or the arguments of that program.

    Raises:
        ValueError: the command does not start verl with a config of this package, or is a script.
    """
    if what in PROGRAMS:
        return read([what, *rest])
    if what in SHELLS or what.endswith(".sh"):
        script = shlex.join([what, *rest] if what in SHELLS else ["bash", what, *rest])
        raise ValueError(f"{what}: a script is planned by its own command: LAUNCH='verl-p2r plan --' {script}")
    module = SFT if "sft" in what else RL
    return Launch(module, what, list(rest), composed(f"pkg://{CONFIGS}", what, rest))


def read(command: Sequence[str]) -> Launch:
    """Read a command as torchrun and Hydra read it, and compose its config.

    Args:
        command: program and arguments.

    Raises:
        ValueError: it does not start a module with a config of this package.
    """
    program, *arguments = command
    processes = None
    if program == "torchrun":
        processes, arguments = _torchrun(arguments)
    elif arguments[:1] == ["-m"]:
        arguments = arguments[1:]
    else:
        arguments = []
    hydra = get_args_parser().parse_args(arguments[1:])
    if not arguments or not str(hydra.config_path).startswith("pkg://"):
        raise ValueError(f"{' '.join(command)}: does not start verl with --config-path pkg://{CONFIGS}")
    config = composed(hydra.config_path, hydra.config_name, hydra.overrides)
    return Launch(arguments[0], hydra.config_name, hydra.overrides, config, processes)


def _torchrun(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Processes on all nodes, and the module that they run with its arguments."""
    launch = get_torchrun_parser().parse_args(arguments)
    per_node, nodes = launch.nproc_per_node, launch.nnodes.split(":")[-1]
    if not (per_node.isdecimal() and nodes.isdecimal() and int(per_node) * int(nodes)):
        raise ValueError(
            f"torchrun --nproc_per_node={per_node} --nnodes={launch.nnodes}: give numbers of at least 1, so that the "
            "plan knows how many GPUs there are"
        )
    return int(per_node) * int(nodes), [launch.training_script, *launch.training_script_args]


def composed(config_path: str, name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a config with Hydra.

    Args:
        config_path: package of the config, `pkg://…`.
        name: name of the config.
        overrides: Hydra overrides.
    """
    with initialize_config_module(config_path.removeprefix("pkg://"), version_base=None):
        return compose(name, list(overrides))
