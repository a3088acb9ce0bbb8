# SPDX-License-Identifier: Apache-2.0
"""Time a whole PA-GRPO step on a CPU: verl's path of a video to the trainer against ours, with 16-frame clips.

    python benchmarks/training_step.py [--quick] [--record]

Runs `examples/quickstart/rl.sh` three times on one set of clips and an untrained tiny model: with verl's agent loop, RL
dataset and vLLM's own processor (`stock`), with ours (`ours`), and with ours and the shared prefix (`shared`). Trainer,
rewards and everything else are the same. So is the video reader, because verl's default readers need other builds of
torch. The first step, which warms up, does not count. A full run takes about nine minutes on 2 cores, most of it
start-up. `--quick` only checks that the three configurations compose, and reports no ratio. The last line is a JSON
object:

    step_ratio         how many times faster a step of `shared` is than one of `stock`
    step_ratio_whole   the same for `ours`, which computes whole rows
    train_ratio        how many times faster the passes of `shared` are than those of `ours`: old log-probabilities and
                       update
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

os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # rl.sh calls this Python
sys.path.insert(0, str(Path(__file__).parent / "support"))

from media_sides import CLIP, composed, rl_rows, write_model  # isort: skip

import pyarrow as pa
import pyarrow.parquet as pq
import recording
from clips import Clips

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"
STEPS, PROMPTS, ROLLOUTS = 4, 4, 8
STOCK = [
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
    "data.custom_cls.name=RLHFDataset",  # verl's own class; our module also installs the reader
]


SIDES = {"stock": STOCK, "ours": [], "shared": ["trainer.p2r.shared_prefix=True"]}
PASSES = ("timing_s/old_log_prob", "timing_s/update_actor")


def overrides(side: str) -> list[str]:
    """Hydra overrides of a side: sizes, and what it does differently."""
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
    return [*sizes, *SIDES[side]]


def run(side: str, folder: Path) -> dict[str, float]:
    """Train; return the mean seconds of a step and of its passes, without the first step."""
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
    steps = [line["data"] for line in lines if "timing_s/step" in line["data"]][1:]
    whole = statistics.mean(step["timing_s/step"] for step in steps)
    return {"step": whole, "passes": statistics.mean(sum(step[name] for name in PASSES) for step in steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="check that the configurations compose; train nothing")
    recording.add_option(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        for side in SIDES:
            composed("p2r_ppo_cpu", *overrides(side))
        names = ("step_ratio", "step_ratio_whole", "train_ratio")
        recording.finish("training_step", dict.fromkeys(names), arguments)
        return
    with tempfile.TemporaryDirectory(prefix="p2r", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        clips = Clips(folder, 4, **CLIP)
        rows = rl_rows(clips.take(PROMPTS * STEPS))
        for row in rows:
            row["extra_info"]["facts"] = ["red"]
        for split in ("train", "val"):
            pq.write_table(pa.Table.from_pylist(rows), folder / f"rl_{split}.parquet")
        subprocess.run([sys.executable, str(QUICKSTART / "make_model.py"), str(folder / "model")], check=True)
        write_model(folder / "limits")  # a checkpoint's pixel limits instead of the quickstart's
        for file in ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"):
            if (folder / "limits" / file).exists():
                (folder / "limits" / file).replace(folder / "model" / file)
        seconds = {side: run(side, folder) for side in SIDES}
    print(f"step of {PROMPTS} prompts x {ROLLOUTS} rollouts, 16 frames of 128·28², mean of {STEPS - 1} steps")
    stock, ours, shared = seconds.values()
    for side, value in seconds.items():
        print(f"{side:8}{value['step']:8.2f} s{stock['step'] / value['step']:8.2f} x{value['passes']:8.2f} s passes")
    figures = {
        "step_ratio": round(stock["step"] / shared["step"], 2),
        "step_ratio_whole": round(stock["step"] / ours["step"], 2),
        "train_ratio": round(ours["passes"] / shared["passes"], 2),
    }
    recording.finish("training_step", figures, arguments)


if __name__ == "__main__":
    main()
