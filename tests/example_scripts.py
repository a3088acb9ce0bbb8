# SPDX-License-Identifier: Apache-2.0
"""The scripts in `examples/` and how they are called: which ones there are, and what a script hands to verl.

A script runs in a real shell, up to the command that starts verl, which `$LAUNCH` prints instead.
"""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, open_dict
from paths import EXAMPLES

from verl_p2r.media.plan import VisionSpec
from verl_p2r.media.rules import MediaSettings
from verl_p2r.planner import SHAPES, worst_media
from verl_p2r.planner.model_shape import find_shape
from verl_p2r.plugin.plan.launches import Launch, composed, read

Run = Launch  # under the name that test_examples.py knows
__all__ = [
    "CASES",
    "EXAMPLES",
    "JUDGE",
    "MODELS",
    "SMALL_CARDS",
    "START",
    "TEXT",
    "Case",
    "Run",
    "call",
    "composed",
    "gpus_of",
    "read",
]

TEXT = 768  # tokens for chat template, instruction (about 300), question and options


@dataclass(frozen=True)
class Model:
    """What the published config.json and preprocessor_config.json of a model say, as far as sizes depend on it."""

    heads: int
    context: int
    spec: VisionSpec


def _model(name: str) -> Model:
    shape, spec, _ = find_shape(name)
    return Model(shape.heads, shape.context, spec)


MODELS = {
    name: _model(name) for name in ("Qwen2.5-VL-3B", "Qwen2.5-VL-7B", "Qwen2.5-VL-32B", "Qwen3-VL-8B", "Qwen3.5-9B")
}


@dataclass(frozen=True)
class Case:
    """A script with the environment it is run in: nothing beyond what it insists on, or one of its variants."""

    script: str
    model: str = "Qwen2.5-VL-7B"
    env: dict[str, str] = field(default_factory=dict)
    gpu: str = "A100"

    def __str__(self) -> str:
        variant = [f"{key}={value}" for key, value in self.env.items() if key not in {**START, **JUDGE}]
        return " ".join([*variant, self.script])


START = {"MODEL": "checkpoints/global_step_9/huggingface"}  # where RL starts: the scripts insist on it
JUDGE = {"JUDGE_MODEL": "judge", "JUDGE_URLS": "[https://one.example/v1,https://two.example/v1]"}
SMALL_CARDS = [
    Case("sft_3b_lora_24gb.sh", "Qwen2.5-VL-3B", gpu="RTX4090"),
    Case("sft_7b_lora_24gb.sh", gpu="RTX4090"),
    Case("pa_grpo_3b_lora_24gb.sh", "Qwen2.5-VL-3B", START, "RTX4090"),
    Case("pa_grpo_7b_lora_24gb.sh", env=START, gpu="RTX4090"),
    Case("pa_grpo_3b_lora_48gb.sh", "Qwen2.5-VL-3B", START, "L40S"),
    Case("pa_grpo_7b_lora_48gb.sh", env=START, gpu="L40S"),
]
CASES = [
    Case("sft_3b.sh", "Qwen2.5-VL-3B"),
    Case("sft_7b.sh"),
    Case("sft_qwen3_vl_8b.sh", "Qwen3-VL-8B"),
    Case("sft_qwen3_5_9b.sh", "Qwen3.5-9B"),
    Case("pa_grpo_3b.sh", "Qwen2.5-VL-3B", START),
    Case("pa_grpo_7b.sh", env=START),
    Case("pa_grpo_7b.sh", env={**START, "BATCH": "7"}),
    Case("pa_grpo_7b_4gpus.sh", env=START),
    *[Case("pa_grpo_7b_multinode.sh", env={**START, **more}) for more in ({}, {"NNODES": "4"}, {"NNODES": "8"})],
    Case("pa_grpo_7b_lora.sh", env=START),
    *SMALL_CARDS,
    Case("pa_grpo_qwen3_vl_8b.sh", "Qwen3-VL-8B", START),
    Case("pa_grpo_qwen3_5_9b.sh", "Qwen3.5-9B", START),
    Case("pa_grpo_32b.sh", "Qwen2.5-VL-32B"),
    Case("pa_grpo_7b_separate_async.sh", env=START),
    Case("pa_grpo_7b_self.sh", env=START),
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


def call(
    script: str, env: dict[str, str], folder: Path, *arguments: str
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run a script in `folder` with nothing but `env` around it.

    Returns:
        How it ended; the command that it would have started, empty when there was none.
    """
    command = ["bash", str(EXAMPLES / script), *arguments]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LAUNCH": r"printf %s\0", **env}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done, done.stdout.split("\0")[:-1]


def gpus_of(run: Launch) -> int:
    """GPUs of all of a run's pools."""
    return run.gpus


def media_tokens(media: MediaSettings, spec: VisionSpec) -> int:
    """Most tokens of a video or an image that is large enough for all pixels."""
    return worst_media(media, spec, SHAPES)[0]


def rename_as_verls_worker_does(ref: DictConfig) -> None:
    """`ActorRolloutRefWorker.init_model` gives the reference policy's settings an actor's names, then converts them."""
    with open_dict(ref):
        ref.ppo_micro_batch_size = ref.pop("log_prob_micro_batch_size")
        ref.ppo_micro_batch_size_per_gpu = ref.pop("log_prob_micro_batch_size_per_gpu")
        ref.use_dynamic_bsz = ref.pop("log_prob_use_dynamic_bsz")
        ref.ppo_max_token_len_per_gpu = ref.pop("log_prob_max_token_len_per_gpu")
