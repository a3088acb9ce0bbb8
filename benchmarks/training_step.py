# SPDX-License-Identifier: Apache-2.0
"""Time a whole PA-GRPO step on a CPU: verl's way of a video to the trainer against ours, with 16-frame clips.

    python benchmarks/training_step.py [--quick] [--record]

Runs `examples/quickstart/rl.sh` twice on one set of clips and an untrained tiny model: once with verl's agent loop, RL
dataset and vLLM's own processor, once with ours. Trainer, rewards and everything else are the same, and so is the
reader, since verl's default ones need other builds of torch. The first step, which warms up, is left out. About six
minutes on 2 cores, most of it start-up; a real run cannot be had in less, so `--quick` only checks that both
configurations compose, and reports no ratio. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["VERL_PLATFORM"] = "cpu"

import media  # the benchmark beside this one: its clips and rows
import pyarrow as pa
import pyarrow.parquet as pq
import recording

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"
STEPS, PROMPTS, ROLLOUTS = 4, 4, 8
STOCK = [
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
    "data.custom_cls.name=RLHFDataset",  # verl's own, from our module, which installs the reader
]


def overrides(side: str) -> list[str]:
    sizes = [
        f"data.train_batch_size={PROMPTS}",
        "data.max_prompt_length=1280",
        "data.max_response_length=48",
        f"actor_rollout_ref.rollout.n={ROLLOUTS}",
        "actor_rollout_ref.rollout.max_model_len=1344",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
        "trainer.val_before_train=False",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
    ]
    return [*sizes, *(STOCK if side == "stock" else [])]


def run(side: str, folder: Path) -> list[float]:
    """Train; give the seconds of each step after the first."""
    out = folder / side
    environment = {"DATA": str(folder), "MODEL": str(folder / "model"), "OUT": str(out), "STEPS": str(STEPS)}
    environment |= {"VLLM_PLUGINS": "verl_p2r_cpu"} if side == "stock" else {}
    done = subprocess.run(
        ["bash", str(QUICKSTART / "rl.sh"), *overrides(side)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{side} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-5000:]}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    times = {line["step"]: line["data"]["timing_s/step"] for line in lines if "timing_s/step" in line["data"]}
    return [times[step] for step in sorted(times)[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="check the configurations; train nothing")
    recording.add_option(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        for side in ("stock", "ours"):
            media.composed("p2r_ppo_cpu", *overrides(side))
        recording.finish("training_step", {"step_ratio": None}, arguments)
        return
    with tempfile.TemporaryDirectory(prefix="p2r", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        clips = media.Clips(folder, 4)
        rows = media.rl_rows(clips.take(PROMPTS * STEPS))
        for row in rows:
            row["extra_info"]["facts"] = ["red"]
        for split in ("train", "val"):
            pq.write_table(pa.Table.from_pylist(rows), folder / f"rl_{split}.parquet")
        subprocess.run([sys.executable, str(QUICKSTART / "make_model.py"), str(folder / "model")], check=True)
        media.write_model(folder / "limits")  # a checkpoint's pixel limits instead of the quickstart's
        for file in ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"):
            if (folder / "limits" / file).exists():
                (folder / "limits" / file).replace(folder / "model" / file)
        seconds = {side: statistics.mean(run(side, folder)) for side in ("stock", "ours")}
    print(f"step of {PROMPTS} prompts x {ROLLOUTS} rollouts, 16 frames of 128·28², mean of {STEPS - 1} steps")
    for side, value in seconds.items():
        print(f"{side:8}{value:8.2f} s{seconds['stock'] / value:8.2f} x")
    recording.finish("training_step", {"step_ratio": round(seconds["stock"] / seconds["ours"], 2)}, arguments)


if __name__ == "__main__":
    main()
