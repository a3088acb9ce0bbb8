# SPDX-License-Identifier: Apache-2.0
"""The scripts in `examples/` and how they are called: which ones there are, and what a script hands to verl.

A script runs in a real shell; `python` and `torchrun` are stand-ins that write down what they were called with.
"""

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, open_dict
from torch.distributed.run import get_args_parser as get_torchrun_parser

from verl_p2r.media import MediaSettings, VideoInfo, VisionSpec, plan_image, plan_video

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = 768  # tokens for chat template, instruction (about 300), question and options
SHAPES = [(1080, 1920), (1920, 1080), (720, 720), (480, 640), (816, 1920), (339, 678), (360, 1080)]  # height, width


@dataclass(frozen=True)
class Model:
    """What the published config.json and preprocessor_config.json of a model say, as far as sizes depend on it."""

    heads: int
    context: int
    spec: VisionSpec


_QWEN2_5 = VisionSpec("qwen2_5_vl", 14, 2, 2, (56 * 56, 12845056), (56 * 56, 12845056))
_QWEN3 = VisionSpec("qwen3_vl", 16, 2, 2, (256 * 256, 4096 * 4096), (4096, 25165824))
MODELS = {
    "Qwen2.5-VL-3B": Model(16, 128000, _QWEN2_5),
    "Qwen2.5-VL-7B": Model(28, 128000, _QWEN2_5),
    "Qwen2.5-VL-32B": Model(40, 128000, _QWEN2_5),
    "Qwen3-VL-8B": Model(32, 262144, _QWEN3),
}


@dataclass(frozen=True)
class Case:
    """A script with the environment it is run in: nothing beyond what it insists on, or one of its variants."""

    script: str
    model: str = "Qwen2.5-VL-7B"
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        variant = [f"{key}={value}" for key, value in self.env.items() if key not in {**START, **JUDGE}]
        return " ".join([*variant, self.script])


START = {"MODEL": "checkpoints/global_step_9/huggingface"}  # where RL starts: the scripts insist on it
JUDGE = {"JUDGE_MODEL": "judge", "JUDGE_URLS": "[https://one.example/v1,https://two.example/v1]"}
CASES = [
    Case("sft_3b.sh", "Qwen2.5-VL-3B"),
    Case("sft_7b.sh"),
    Case("sft_qwen3_vl_8b.sh", "Qwen3-VL-8B"),
    Case("pa_grpo_3b.sh", "Qwen2.5-VL-3B", START),
    Case("pa_grpo_7b.sh", env=START),
    Case("pa_grpo_7b.sh", env={**START, "BATCH": "7"}),
    Case("pa_grpo_7b_4gpus.sh", env=START),
    *[Case("pa_grpo_7b_multinode.sh", env={**START, **more}) for more in ({}, {"NNODES": "4"}, {"NNODES": "8"})],
    Case("pa_grpo_7b_lora.sh", env=START),
    Case("pa_grpo_qwen3_vl_8b.sh", "Qwen3-VL-8B", START),
    Case("pa_grpo_32b.sh", "Qwen2.5-VL-32B"),
    Case("pa_grpo_7b_separate_async.sh", env=START),
    Case("pa_grpo_7b_judge_external.sh", env={**START, **JUDGE}),
    Case("pa_grpo_7b_judge_in_cluster.sh", env=START),
    Case("pa_grpo_7b_judge_in_cluster.sh", env={**START, "GPUS": "4", "JUDGE_GPUS": "4"}),
    Case("pa_grpo_7b_judge_in_cluster.sh", env={**START, "GPUS": "8", "JUDGE_GPUS": "8"}),
    *[Case("pa_grpo_7b_long_video.sh", env={**START, **more}) for more in ({}, {"FRAMES": "128"}, {"FRAMES": "256"})],
    *[
        Case("ablation.sh", env={**START, "ABLATION": name})
        for name in ("grpo", "no_reasoning", "no_length", "no_separation")
    ],
    *[Case("ablation.sh", env={"ABLATION": name}) for name in ("rl_only", "sft_only", "agnostic_sft")],
]


@dataclass
class Run:
    """What a script called: verl's module, the overrides as written, the config they make, torchrun's processes."""

    module: str
    config_name: str
    overrides: list[str]
    config: DictConfig
    processes: int | None

    @property
    def trains_rl(self) -> bool:
        return self.module == "verl.trainer.main_ppo"


def call(
    script: str, env: dict[str, str], folder: Path, *arguments: str
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run a script with nothing but `env` around it; what it called last, as a list of arguments."""
    stubs, said = folder / "bin", folder / "said"
    stubs.mkdir(parents=True, exist_ok=True)
    said.unlink(missing_ok=True)
    for name in ("python", "torchrun"):
        (stubs / name).write_text(f"#!/bin/sh\nprintf '%s\\0' {name} \"$@\" >'{said}'\n")
        (stubs / name).chmod(0o755)
    done = subprocess.run(
        [shutil.which("bash"), EXAMPLES / script, *arguments],
        env={"PATH": f"{stubs}:/usr/bin:/bin", "HOME": str(folder), **env},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done, said.read_text().split("\0")[:-1] if said.exists() else []


def composed(config_path: str, name: str, overrides: list[str]) -> DictConfig:
    assert config_path.startswith("pkg://")
    with initialize_config_module(config_path.removeprefix("pkg://"), version_base=None):
        return compose(name, overrides)


def read(command: list[str]) -> Run:
    """Read a command as torchrun and Hydra read it, and compose its config."""
    program, *arguments = command
    processes = None
    if program == "torchrun":
        launch = get_torchrun_parser().parse_args(arguments)
        assert launch.module
        processes = int(launch.nproc_per_node) * int(launch.nnodes.split(":")[-1])
        module, arguments = launch.training_script, launch.training_script_args
    else:
        assert arguments[0] == "-m"
        module, arguments = arguments[1], arguments[2:]
    hydra = get_args_parser().parse_args(arguments)
    config = composed(hydra.config_path, hydra.config_name, hydra.overrides)
    return Run(module, hydra.config_name, hydra.overrides, config, processes)


def gpus_of(run: Run) -> int:
    """GPUs of all of a run's pools."""
    if not run.trains_rl:
        return run.processes
    trainer, rollout, judge = run.config.trainer, run.config.actor_rollout_ref.rollout, run.config.reward.reward_model
    pools = [trainer.nnodes * trainer.n_gpus_per_node, rollout.nnodes * rollout.n_gpus_per_node]
    return sum(pools) + (judge.nnodes * judge.n_gpus_per_node if judge.enable else 0)


def media_tokens(media: MediaSettings, spec: VisionSpec) -> int:
    """Most tokens of a video or an image: long enough for all frames, large enough for all pixels."""
    video, image = media.fill({"video": "a.mp4"}), media.fill({"image": "a.png"})
    plans = [plan_video(video, VideoInfo(100_000, 30.0, *shape), spec) for shape in SHAPES]
    assert {len(plan.indices) for plan in plans} == {media.max_frames}
    images = [plan_image(image, shape, spec) for shape in SHAPES]
    stamps = media.max_frames // 2 * 10 if spec.kind == "qwen3_vl" else 0  # "<12.5 seconds>" before each grid
    return max(max(plan.tokens for plan in plans) + stamps, max(plan.tokens for plan in images))


def rename_as_verls_worker_does(ref: DictConfig) -> None:
    """`ActorRolloutRefWorker.init_model` gives the reference policy's settings an actor's names, then converts them."""
    with open_dict(ref):
        ref.ppo_micro_batch_size = ref.pop("log_prob_micro_batch_size")
        ref.ppo_micro_batch_size_per_gpu = ref.pop("log_prob_micro_batch_size_per_gpu")
        ref.use_dynamic_bsz = ref.pop("log_prob_use_dynamic_bsz")
        ref.ppo_max_token_len_per_gpu = ref.pop("log_prob_max_token_len_per_gpu")
