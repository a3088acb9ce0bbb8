# SPDX-License-Identifier: Apache-2.0
"""Time the judge `openai` against a server of known latency, in a separate process (tests/judge_server.py).

    python benchmarks/judge.py [--quick] [--profile] [--record]

The last line is a JSON object: `throughput_share_64` and `_256` are the calls per second sustained, as a share of what
64 and 256 calls in flight allow at a mean latency of 1 s (target 0.9); `step_overhead` is how much longer a training
step takes with a judge of 1 s than with one of 0 s (target 0.02); `cpu_ms_per_call` is our client's CPU time for a
call, in milliseconds (target 1); `hit_us` is the time of a cache hit, in microseconds (target 50).

The step is a real one, of two runs of the quickstart's trainer, when `make quickstart` has left its model and data in
outputs/quickstart (about 15 minutes). With --quick, or without them, it is a stand-in: a step's 448 rollouts that end
one by one over eight seconds (two with --quick), each scored by the real reward manager as it ends, and what the
judge adds is set against the 59.4 s that a step of the paper's takes.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VERL_PLATFORM", "cpu")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import psutil  # noqa: E402
import recording  # noqa: E402
from judge_server import JudgeServer  # noqa: E402

from verl_p2r.judge import JudgeRequest, get_judge  # noqa: E402

LATENCY = 1.0  # seconds
PROMPTS, GROUP = 56, 8  # in a step of the paper
PAPER_STEP = 16.5 * 3600 / 1000  # seconds: GRPO, without a judge
ROLLOUT = 8.0  # seconds that the stand-in generates
SLOTS = 256  # the stand-in's slots: verl's 8 reward workers with the default of 32 calls in flight each
QUICKSTART = ROOT / "outputs" / "quickstart"
STEP_PROMPTS, STEPS = 96, 4  # for the real runs: a step takes about as long as the paper's; the first is warming up
TARGETS = {
    "throughput_share_64": (0.9, 1),
    "throughput_share_256": (0.9, 1),
    "step_overhead": (0.02, -1),
    "cpu_ms_per_call": (1.0, -1),
    "hit_us": (50.0, -1),
}


def requests(name: str, count: int) -> list[JudgeRequest]:
    """Observations of the paper's length, about 200 words, no two the same."""
    scene = "The red ball rolls to the left past a wooden box while a child in a yellow coat watches it. " * 10
    question = "Which colour is the ball?\nOptions:\nA. red\nB. blue\nC. green\n"
    return [JudgeRequest(question, "A", f"{name} {i}. {scene}", row=f"{name} {i}") for i in range(count)]


def openai_judge(server: JudgeServer, concurrency: int) -> Any:
    return get_judge("openai", model="judge", base_urls=server.base_url, concurrency=concurrency)


async def ask_all(judge: Any, asked: list[JudgeRequest]) -> None:
    verdicts = await asyncio.gather(*(judge.judge(request) for request in asked))
    silent = [verdict.reason for verdict in verdicts if verdict.value is None]
    if silent:
        raise RuntimeError(f"{len(silent)} of {len(asked)} calls got no verdict, the first because: {silent[0]}")


def throughput_share(server: JudgeServer, in_flight: int, rounds: int) -> tuple[float, str]:
    """Calls per second over what latency and concurrency allow, once as many are in flight as may be; and who was busy.

    The latency varies from call to call, 0.75 to 1.25 s, as a model's does. The first round connects and is not timed.
    """
    server.control(latency=0.75 * LATENCY, jitter=0.5 * LATENCY)
    process = psutil.Process(server.process.pid)
    marks: list[tuple[float, float, float]] = []
    done = 0

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time(), sum(process.cpu_times()[:2])))

    async def call(judge: Any, request: JudgeRequest) -> None:
        nonlocal done
        await ask_all(judge, [request])
        done += 1
        if done in (in_flight, in_flight * rounds):
            mark()

    async def measure() -> None:
        judge = openai_judge(server, in_flight)
        # A round more than is timed, so that as many as may be are in flight to the end.
        asked = requests(f"throughput {in_flight}", in_flight * (rounds + 1))
        await asyncio.gather(*(call(judge, request) for request in asked))
        await judge.aclose()

    psutil.cpu_percent()
    asyncio.run(measure())
    seconds, ours, theirs = (end - start for start, end in zip(*marks, strict=True))
    busy = (
        f"client {ours / seconds:.0%} and server {theirs / seconds:.0%} of a core, machine {psutil.cpu_percent():.0f}%"
    )
    return LATENCY * (rounds - 1) / seconds, busy


def cpu_ms_per_call(server: JudgeServer, batches: int, profile: bool) -> float:
    """The client process's CPU time per call at 64 in flight, all threads: the median of some batches."""
    server.control(latency=0.1)
    judge = openai_judge(server, 64)
    profiler = cProfile.Profile()

    async def measure() -> float:
        await ask_all(judge, requests("warm up", 128))
        times = []
        for batch in range(batches):
            asked = requests(f"cpu {batch}", 512)
            start = time.process_time()
            await ask_all(judge, asked)
            times.append((time.process_time() - start) / len(asked))
        if profile:
            profiler.enable()
            await ask_all(judge, requests("profile", 512))
            profiler.disable()
        await judge.aclose()
        return statistics.median(times) * 1e3

    result = asyncio.run(measure())
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(15)
    return result


def hit_us(server: JudgeServer, repeats: int) -> float:
    """The time of a verdict that is in memory: the median of some loops."""
    server.control()
    asked = requests("hit", 100)

    async def measure() -> float:
        judge = openai_judge(server, 64)
        await ask_all(judge, asked)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            for request in asked:
                await judge.judge(request)
            times.append((time.perf_counter() - start) / len(asked))
        await judge.aclose()
        return statistics.median(times) * 1e6

    return asyncio.run(measure())


def stand_in(server: JudgeServer, last_end: float) -> float:
    """What a judge of 1 s adds to a step, over the paper's step: real reward manager, rollouts that end one by one.

    Args:
        server: the judge.
        last_end: seconds after which the last rollout ends.
    """
    import numpy as np
    import torch
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(vocab=letters, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)

    def row(arm: str, i: int) -> DataProto:
        text = f"<observation>{arm} {i}: a red ball rolls.</observation><think>Red is A.</think><answer>A</answer>"
        response = torch.tensor([tokenizer.encode(text)])
        prompt = torch.zeros(1, 1, dtype=torch.int64)
        mask = torch.ones(1, 1 + response.shape[1], dtype=torch.int64)
        batch = TensorDict({"prompts": prompt, "responses": response, "attention_mask": mask}, batch_size=1)
        columns = {
            "problem_type": "multiple choice",
            "reward_model": {"ground_truth": "<answer>A</answer>"},
            "extra_info": {"index": i, "question": "Which colour?\nOptions:\nA. red\nB. blue\n"},
        }
        return DataProto(batch=batch, non_tensor_batch={k: np.array([v], dtype=object) for k, v in columns.items()})

    async def step(arm: str, latency: float) -> float:
        await asyncio.to_thread(server.control, latency=latency)
        kwargs = {"model": "judge", "base_urls": server.base_url, "concurrency": SLOTS}
        config = OmegaConf.create({"algorithm": {"p2r": {"judge": {"name": "openai", "kwargs": kwargs}}}})
        manager = get_reward_manager_cls("p2r")(config, tokenizer)
        rows = [row(arm, i) for i in range(PROMPTS * GROUP)]
        ends = [last_end * (0.4 + 0.6 * (i + 1) / len(rows)) for i in range(len(rows))]
        random.Random(0).shuffle(ends)

        async def rollout(data: DataProto, end: float) -> dict[str, Any]:
            await asyncio.sleep(end)
            return await manager.run_single(data)

        start = time.perf_counter()
        scored = await asyncio.gather(*map(rollout, rows, ends))
        seconds = time.perf_counter() - start
        await manager.judge.aclose()
        valid = sum(one["reward_extra_info"]["perception_valid"] for one in scored)
        if valid != len(rows):
            raise RuntimeError(f"{len(rows) - valid} of {len(rows)} rollouts got no verdict")
        return seconds

    slow, quick = (asyncio.run(step(f"{latency} s", latency)) for latency in (LATENCY, 0.0))
    print(
        f"stand-in: {PROMPTS * GROUP} rollouts end over {last_end:.0f} s; the last is scored after {quick:.2f} s with a"
    )
    print(f"  judge of 0 s, {slow:.2f} s with one of {LATENCY:.0f} s: the paper's step of {PAPER_STEP} s grows by that")
    return (slow - quick) / PAPER_STEP


def real_steps(server: JudgeServer) -> float:
    """How much longer a step of the quickstart's trainer takes: the mean of the steps after the first, of two runs."""
    seconds = []
    for latency in (0.0, LATENCY):
        server.control(latency=latency)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            overrides = [
                "p2r/judge=openai",
                "algorithm.p2r.judge.kwargs.model=judge",
                f"algorithm.p2r.judge.kwargs.base_urls=[{server.base_url}]",
                f"data.train_batch_size={STEP_PROMPTS}",
                f"actor_rollout_ref.actor.ppo_mini_batch_size={STEP_PROMPTS}",
                "trainer.val_before_train=False",
                "trainer.test_freq=-1",
                "trainer.save_freq=-1",
            ]
            command = ["bash", str(ROOT / "examples" / "quickstart" / "rl.sh"), *overrides]
            places = {"DATA": str(QUICKSTART / "data"), "MODEL": str(QUICKSTART / "sft" / "model"), "OUT": str(out)}
            log = Path(folder) / "log"
            with log.open("wb") as stream:
                env = {**os.environ, **places, "STEPS": str(STEPS)}
                done = subprocess.run(command, stdout=stream, stderr=stream, env=env, check=False)
            if done.returncode:
                raise RuntimeError(
                    f"the trainer ended with {done.returncode}:\n{log.read_text(errors='replace')[-3000:]}"
                )
            entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            steps = [e["data"]["timing_s/step"] for e in entries if e["step"] > 1 and "timing_s/step" in e["data"]]
            seconds.append(statistics.mean(steps))
            print(f"trainer: judge of {latency:.0f} s: steps of {', '.join(f'{s:.1f}' for s in steps)} s")
    return seconds[1] / seconds[0] - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer calls, a stand-in for the step; within 50 seconds")
    parser.add_argument("--profile", action="store_true", help="show where the client's time goes")
    recording.add_option(parser)
    arguments = parser.parse_args()
    rounds, batches, repeats, last_end = (2, 3, 30, 2.0) if arguments.quick else (20, 15, 200, ROLLOUT)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        server = JudgeServer(Path(folder) / "journal.jsonl")
        try:
            for in_flight in (64, 256):
                name = f"throughput_share_{in_flight}"
                figures[name], busy = throughput_share(server, in_flight, rounds)
                print(f"{in_flight} in flight, {rounds} rounds of {LATENCY:.0f} s: {figures[name]:.3f} ({busy})")
            figures["cpu_ms_per_call"] = cpu_ms_per_call(server, batches, arguments.profile)
            figures["hit_us"] = hit_us(server, repeats)
            # Last: it imports verl, and the garbage collector's walks over that are not the client's.
            real = not arguments.quick and (QUICKSTART / "sft" / "model" / "config.json").exists()
            figures["step_overhead"] = real_steps(server) if real else stand_in(server, last_end)
        finally:
            server.kill()
    for name, (target, sign) in TARGETS.items():
        met = "met" if sign * figures[name] >= sign * target else "MISSED"
        print(f"{name:24}{figures[name]:9.3f}   target {'at least' if sign > 0 else 'at most '} {target:g}: {met}")
    recording.finish("judge", {name: round(figures[name], 4) for name in TARGETS}, arguments)


if __name__ == "__main__":
    main()
