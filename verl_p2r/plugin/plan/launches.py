# SPDX-License-Identifier: Apache-2.0
"""What a launch script hands to verl, read as torchrun and Hydra read it, without starting it.

A script is run, but `python`, `python3` and `torchrun`, as names on PATH, only write down what they were called with. A
script that calls others (`accelerate`, a path of its own) would really start them.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig
from torch.distributed.run import get_args_parser as get_torchrun_parser

CONFIGS = "verl_p2r.config"
PROGRAMS = ("python", "python3", "torchrun")
PATIENCE = 60.0  # seconds for what a script does before it starts verl


@dataclass
class Launch:
    """A start of verl.

    Args:
        module: verl's, that is run.
        config_name, overrides: as written.
        config: what they make.
        processes: of torchrun, on all nodes; None without it.
    """

    module: str
    config_name: str
    overrides: list[str]
    config: DictConfig
    processes: int | None = None

    @property
    def trains_rl(self) -> bool:
        return self.module == "verl.trainer.main_ppo"

    @property
    def gpus(self) -> int:
        """GPUs of all of its pools."""
        trainer = self.config.trainer
        if not self.trains_rl:
            return self.processes or trainer.nnodes * trainer.n_gpus_per_node
        rollout, judge = self.config.actor_rollout_ref.rollout, self.config.reward.reward_model
        pools = [trainer.nnodes * trainer.n_gpus_per_node, rollout.nnodes * rollout.n_gpus_per_node]
        return sum(pools) + (judge.nnodes * judge.n_gpus_per_node if judge.enable else 0)


def catch(
    script: Path, arguments: list[str], env: Mapping[str, str], folder: Path
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run a script whose `python` and `torchrun` only write down what they were called with.

    Args:
        script: for bash; whatever else it does, it does.
        arguments: of the script.
        env: its whole environment.
        folder: where it runs.

    Returns:
        How it ended; the last call, as a list of arguments, empty when there was none.

    Raises:
        ValueError: it does not end.
    """
    with tempfile.TemporaryDirectory() as stubs:
        said = Path(stubs) / "said"
        for name in PROGRAMS:
            (Path(stubs) / name).write_text(f"#!/bin/sh\nprintf '%s\\0' {name} \"$@\" >{quote(str(said))}\n")
            (Path(stubs) / name).chmod(0o755)
        command = [shutil.which("bash") or "bash", str(script.absolute()), *arguments]
        process = subprocess.Popen(
            command,
            env={**env, "PATH": f"{stubs}:{env.get('PATH', '/usr/bin:/bin')}"},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise ValueError(f"{script}: did not come to its end within {PATIENCE:g} s, and was killed") from None
        done = subprocess.CompletedProcess(command, process.returncode, *output)
        return done, said.read_text().split("\0")[:-1] if said.exists() else []


def read(command: list[str]) -> Launch:
    """Read a command as torchrun and Hydra read it, and compose its config.

    Raises:
        ValueError: it does not start a module with a config of this package.
    """
    program, *arguments = command
    processes = None
    if program == "torchrun":
        launch = get_torchrun_parser().parse_args(arguments)
        per_node, nodes = launch.nproc_per_node, launch.nnodes.split(":")[-1]
        if not (per_node.isdecimal() and nodes.isdecimal() and int(per_node) * int(nodes)):
            raise ValueError(
                f"torchrun --nproc_per_node={per_node} --nnodes={launch.nnodes}: give numbers of at least 1, so that "
                "the plan knows how many GPUs there are"
            )
        processes = int(per_node) * int(nodes)
        module, arguments = launch.training_script, launch.training_script_args
    elif arguments[:1] == ["-m"]:
        module, arguments = arguments[1], arguments[2:]
    else:
        module = None
    hydra = get_args_parser().parse_args(arguments) if module else None
    if hydra is None or not str(hydra.config_path).startswith("pkg://"):
        raise ValueError(f"{' '.join(command)}: is no start of verl with --config-path pkg://{CONFIGS}")
    config = composed(hydra.config_path, hydra.config_name, hydra.overrides)
    return Launch(module, hydra.config_name, hydra.overrides, config, processes)


def composed(config_path: str, name: str, overrides: list[str]) -> DictConfig:
    """The config that Hydra makes of a name in a package, `pkg://…`, and overrides."""
    with initialize_config_module(config_path.removeprefix("pkg://"), version_base=None):
        return compose(name, overrides)


def launch_of(config: str, overrides: list[str], env: Mapping[str, str]) -> Launch:
    """The launch that a script makes, or that a config's name and overrides mean.

    Args:
        config: the path of a script, or the name of one of this package's configs.
        overrides: Hydra's; a script gets them as its arguments.
        env: of a script.

    Raises:
        ValueError: the script starts nothing; its own words say why.
    """
    if not (config.endswith(".sh") or Path(config).is_file()):
        module = "verl.trainer.sft_trainer" if "sft" in config else "verl.trainer.main_ppo"
        return Launch(module, config, overrides, composed(f"pkg://{CONFIGS}", config, overrides))
    if not Path(config).is_file():
        raise ValueError(f"{config}: there is no such script")
    done, command = catch(Path(config), overrides, env, Path.cwd())
    if done.returncode or not command:
        raise ValueError(f"{config}: {done.stderr.strip() or 'it calls neither python nor torchrun'}")
    return read(command)
