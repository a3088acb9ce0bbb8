# SPDX-License-Identifier: Apache-2.0
"""Time and weigh the way of a video to the trainer: verl's agent loop, datasets and worker against ours.

    python benchmarks/media.py [--quick] [--profile] [--record]

One run makes the clips and measures both sides on them in turn, both with our PyAV reader, with one torch thread. What
runs is verl's and our worker class and datasets; the inference server answers at once, the reward worker gives 1, and
TransferQueue is its serializer with a list behind it. A prompt is a clip of 8 s at 25 fps, of which 16 frames of
128 · 28² pixels are taken; it has 8 rollouts. `--profile` adds where the time of a missed target goes. The last line is
a JSON object of what the table shows: counts and MiB per prompt on our side, and for the rest how many times faster
(`rss_ratio`: the share of memory) ours is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import cProfile
import functools
import io
import logging
import multiprocessing
import os
import pstats
import resource
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.update(VERL_PLATFORM="cpu", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", HF_DATASETS_DISABLE_PROGRESS_BARS="1"
)
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "quickstart"))

import verl_p2r.plugin  # noqa: F401, I001  torch and torchvision made to fit before anything imports them

import av
import datasets
import make_model
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import recording
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from transfer_queue.utils.serial_utils import encode
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, agent_loop_tq
from verl.utils import hf_processor
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

from verl_p2r.media import decode
from verl_p2r.media.decode import install_reader
from verl_p2r.plugin.media.agent_loop import P2RAgentLoopWorker
from verl_p2r.plugin.datasets.rl_dataset import P2RDataset
from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset

STOCK, OURS = "stock", "ours"
MIB, ROLLOUTS, PROMPTS, VIDEOS = 2**20, 8, 32, 2000
HEIGHT, WIDTH, FPS, SECONDS = 320, 640, 25, 8  # pixels, frames per second; resized to 224 x 448 = 128 · 28²
RULES = {"fps": 2.0, "min_frames": 4, "max_frames": 16, "min_pixels": 128 * 28**2, "max_pixels": 128 * 28**2}
QUESTION = "<video>What moves, and where does it go?"
RESPONSE = "<observation>a red square moves left</observation><think>so</think><answer>left</answer>"
TARGETS = {  # at most for counts, MiB and memory; at least for speed
    "decodes": 1,
    "processor_calls": 1,
    "tq_bytes": 19 * MIB,
    "agent_wall_ratio": 8,
    "filter_cold_ratio": 100,
    "filter_warm_ratio": 1000,
    "sft_prep_ratio": 2,
    "rss_ratio": 0.25,
}
AT_MOST = ("decodes", "processor_calls", "tq_bytes", "rss_ratio")


# --- What both sides are given ---------------------------------------------------------------------------------------


def write_clip(path: Path, seed: int) -> None:
    """A camera that pans over soft shapes, with its noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : HEIGHT + 80, 0 : WIDTH + 200] / 40
    waves = rng.uniform(0.3, 3, (3, 2))
    scene = np.stack([128 + 90 * np.sin(a * rows) * np.cos(b * columns + a) for a, b in waves], axis=-1)
    scene += rng.normal(0, 6, scene.shape)
    scene = scene.clip(0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(FPS * SECONDS):
            picture = np.ascontiguousarray(scene[i // 3 : i // 3 + HEIGHT, i : i + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


class Clips:
    """Videos that no cache has seen: each has a file of its own, though few have a content of their own."""

    def __init__(self, folder: Path, contents: int):
        self._folder, self._given = folder, 0
        self._contents = [folder / f"content{i}.mp4" for i in range(contents)]
        for seed, path in enumerate(self._contents):
            write_clip(path, seed)

    def take(self, count: int) -> list[str]:
        paths = []
        for _ in range(count):
            path = self._folder / f"clip{os.getpid()}-{self._given}.mp4"
            os.link(self._contents[self._given % len(self._contents)], path)
            self._given += 1
            paths.append(str(path))
        return paths


def write_model(folder: Path) -> None:
    """The quickstart's processor, with the pixel limits that Qwen2.5-VL's checkpoints have; weights are not needed."""
    processor = make_model.build_processor()
    limits = {"min_pixels": 4 * 28**2, "max_pixels": 16384 * 28**2}
    processor.image_processor = Qwen2VLImageProcessor(**limits)
    processor.video_processor = Qwen2VLVideoProcessor(**limits)
    processor.save_pretrained(folder)
    config = make_model.build_config(processor.tokenizer)
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.save_pretrained(folder)


@functools.cache  # composing takes a second
def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_module("verl_p2r.config", version_base=None):
        return compose(name, [*overrides, "data.p2r.rejects_dir=null"])


def configure(side: str, folder: Path) -> DictConfig:
    config = composed(
        "p2r_ppo_cpu",
        f"actor_rollout_ref.model.path={folder / 'model'}",
        f"actor_rollout_ref.rollout.n={ROLLOUTS}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent",
        "data.max_prompt_length=2048",
        "data.max_response_length=128",
        f"data.p2r.screen_cache={folder / 'screenings'}",
    )
    config = copy.deepcopy(config)
    OmegaConf.resolve(config)  # as verl's entrypoint does
    if side == STOCK:
        config.data.custom_cls.path = None
        config.data.filter_overlong_prompts = True
        config.data.filter_overlong_prompts_workers = None  # in this process, as fast as in verl's one worker
    return config


def element(path: str) -> dict[str, Any]:
    return {"type": "video", "video": path, **RULES}


def rl_rows(paths: list[str]) -> list[dict]:
    row = {"data_source": "benchmark", "problem_type": "free-form", "reward_model": {"ground_truth": "left"}}
    prompt = [{"role": "user", "content": QUESTION}]
    return [{**row, "prompt": prompt, "videos": [element(p)], "extra_info": {"index": i}} for i, p in enumerate(paths)]


def sft_rows(paths: list[str]) -> list[dict]:
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": RESPONSE}]
    return [{"messages": messages, "videos": [element(path)]} for path in paths]


def parquet(folder: Path, rows: list[dict]) -> str:
    path = str(folder / f"{uuid.uuid4().hex}.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


# --- The agent loop --------------------------------------------------------------------------------------------------


class Server:
    """In the place of verl's client of the inference server."""

    async def generate(self, request_id: str, **kwargs) -> TokenOutput:
        steps = {"global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}
        return TokenOutput(token_ids=[300] * 100, log_probs=[-0.5] * 100, extra_fields=steps)


async def _score(data: Any) -> dict[str, Any]:
    return {"reward_score": 1.0, "reward_extra_info": {"reasoning": 1.0}}


REWARD_WORKER = SimpleNamespace(compute_score=SimpleNamespace(remote=_score))


class Queue:
    """In the place of TransferQueue: what is put is serialized as TransferQueue serializes it, and kept."""

    def __init__(self):
        self.held: list[bytes] = []

    def init(self, *args: Any) -> None:
        pass

    async def async_kv_put(self, *, key: str, tag: dict[str, Any], **kwargs: Any) -> None:
        if tag["status"] == "failure":
            raise RuntimeError("a rollout failed; verl has logged why")

    async def async_kv_batch_put(self, *, fields: Any, **kwargs: Any) -> None:
        self.held += [bytes(part) for part in encode({name: fields[name] for name in fields.keys()})]  # noqa: SIM118


class Worker:
    """One side's agent loop worker outside of an actor."""

    def __init__(self, side: str, folder: Path):
        self.queue = agent_loop_tq.tq = Queue()
        worker = {STOCK: AgentLoopWorkerTQ.__ray_actor_class__, OURS: P2RAgentLoopWorker}[side]
        self._worker = worker(configure(side, folder), Server(), None, [REWARD_WORKER])
        self._loop = asyncio.new_event_loop()

    def roll_out(self, paths: list[str]) -> None:
        """Let a batch of prompts, one for each video, have its rollouts."""
        agent_loop_tq.tq = self.queue
        text = {"type": "text", "text": QUESTION.removeprefix("<video>")}
        prompts = [[{"role": "user", "content": [element(path), text]}] for path in paths]
        columns = {"uid": [uuid.uuid4().hex for _ in paths], "raw_prompt": prompts, "index": list(range(len(paths)))}
        batch = tu.get_tensordict(columns, {"global_steps": 1, "validate": False})

        async def run() -> None:
            await self._worker.generate_sequences(batch)
            await asyncio.gather(*self._worker.background_tasks)

        self._loop.run_until_complete(run())


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count readings of video files and runs of the Hugging Face processor's video part."""
    counts = {"decodes": 0, "processor_calls": 0}
    read, call = decode._decode, Qwen2VLVideoProcessor.__call__

    def counting_read(*args: Any) -> Any:
        counts["decodes"] += 1
        return read(*args)

    def counting_call(*args: Any, **kwargs: Any) -> Any:
        counts["processor_calls"] += 1
        return call(*args, **kwargs)

    decode._decode, Qwen2VLVideoProcessor.__call__ = counting_read, counting_call
    try:
        yield counts
    finally:
        decode._decode, Qwen2VLVideoProcessor.__call__ = read, call


def start_ray() -> None:
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=2**30,
        configure_logging=False,
        log_to_driver=False,
    )


def peak_memory(side: str, folder: Path, paths: list[str]) -> float:
    """Bytes that a batch of `PROMPTS` prompts adds to this process: worker, object store pages, the queue's content.

    What rolling out `paths` adds at its peak is scaled to that batch; what starting the worker adds is not.
    """

    def highest() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    torch.set_num_threads(torch.get_num_threads())  # in a forked process, threads that ask first at once can crash
    imported = highest()
    with contextlib.redirect_stdout(io.StringIO()):
        if side == OURS:
            start_ray()
        worker = Worker(side, folder)
        started = highest()
        worker.roll_out(paths)
    peak = highest()
    ray.shutdown()
    return started - imported + (peak - started) * PROMPTS / len(paths)


# --- Measuring -------------------------------------------------------------------------------------------------------


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(name: str, stock: str, ours: str, ratio: str, note: str = "") -> None:
    print(f"{name:42}{stock:>14}{ours:>14}{ratio:>10}  {note}", flush=True)


def measure_memory(folder: Path, clips: Clips, stock_prompts: int, our_prompts: int) -> dict[str, float]:
    """Each side in a child forked after the imports, before anything else was done."""
    peaks = {}
    for side, count in ((STOCK, stock_prompts), (OURS, our_prompts)):
        paths = clips.take(count)
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            peaks[side] = pool.submit(peak_memory, side, folder, paths).result()
    ratio = peaks[OURS] / peaks[STOCK]
    note = f"scaled from {stock_prompts} and {our_prompts} prompts"
    name = f"peak resident memory, {PROMPTS} x {ROLLOUTS}"
    report(name, *(f"{peaks[side] / MIB:.0f} MiB" for side in (STOCK, OURS)), f"{ratio:.3f} x", note)
    return {"rss_ratio": ratio}


def wall_times(workers: dict[str, Worker], clips: Clips, rounds: int, prompts: int) -> dict[str, float]:
    """Median seconds per prompt of batches that neither side has seen, in interleaved rounds."""
    times: dict[str, list[float]] = {side: [] for side in workers}
    for _ in range(rounds):
        for side, worker in workers.items():
            paths = clips.take(prompts)
            times[side].append(seconds(lambda worker=worker, paths=paths: worker.roll_out(paths)) / prompts)
            worker.queue.held.clear()
    return {side: statistics.median(values) for side, values in times.items()}


def measure_agent(workers: dict[str, Worker], clips: Clips, rounds: int, batch: int | None) -> dict[str, float]:
    """One prompt alone, which is counted first; and, if wanted, a batch, as a worker gets it in training."""
    counts, sizes = {}, {}
    for side, worker in workers.items():
        with counted() as counts[side]:
            worker.roll_out(clips.take(1))
        sizes[side] = sum(map(len, worker.queue.held))
        worker.queue.held.clear()
    for name in ("decodes", "processor_calls"):
        stock, ours = counts[STOCK][name], counts[OURS][name]
        report(f"{name.replace('_', ' ')}, agent side", str(stock), str(ours), f"{stock / ours:.0f} x")
    mib = [f"{sizes[side] / MIB:.2f} MiB" for side in (STOCK, OURS)]
    report("bytes into TransferQueue", *mib, f"{sizes[STOCK] / sizes[OURS]:.0f} x")
    ratios = []
    for prompts in (1, batch) if batch else (1,):
        wall = wall_times(workers, clips, rounds, prompts)
        ratios.append(wall[STOCK] / wall[OURS])
        milliseconds = [f"{wall[side] * 1e3:.0f} ms" for side in (STOCK, OURS)]
        label = "wall time agent-side, per prompt" + (f" of {prompts}" if prompts > 1 else "")
        report(label, *milliseconds, f"{ratios[-1]:.1f} x", f"median of {rounds}")
    return {**counts[OURS], "tq_bytes": sizes[OURS], "agent_wall_ratio": ratios[0]}


def start_up(side: str, folder: Path, file: str, screening: bool = True) -> Callable[[], object]:
    """One side's RL dataset, from its file to the filtered rows."""
    config = configure(side, folder).data
    config.filter_overlong_prompts &= screening
    processor = hf_processor(str(folder / "model"))
    dataset = {STOCK: RLHFDataset, OURS: P2RDataset}[side]
    return lambda: dataset(file, processor.tokenizer, config, processor=processor)


def measure_filter(folder: Path, clips: Clips, sample: int, our_sample: int) -> dict[str, float]:
    """Starts on samples of the videos, scaled; but for what verl's takes without its filter."""
    file = parquet(folder, rl_rows(clips.take(our_sample)))
    small = parquet(folder, rl_rows(clips.take(sample)))
    with contextlib.redirect_stdout(io.StringIO()):
        seconds(start_up(STOCK, folder, small, screening=False))
        fixed = seconds(start_up(STOCK, folder, small, screening=False))
        stock = [seconds(start_up(STOCK, folder, small)) for _ in range(2)]
        ours = [seconds(start_up(OURS, folder, file)) for _ in range(2)]
    ratios = {}
    for name, theirs, mine in zip(("cold", "warm"), stock, ours, strict=True):
        theirs, mine = fixed + (theirs - fixed) * VIDEOS / sample, mine * VIDEOS / our_sample
        ratios[f"filter_{name}_ratio"] = ratio = theirs / mine
        label = f"length filter, {VIDEOS} videos, {'cold' if name == 'cold' else 'second start'}"
        report(label, f"{theirs:.1f} s", f"{mine:.3f} s", f"{ratio:.0f} x", f"scaled from {sample} and {our_sample}")
    return ratios


def sft_dataset(side: str, folder: Path, file: str, cache: Path | None = None) -> Any:
    config = composed("p2r_sft_cpu", f"model.path={folder / 'model'}", f"data.p2r.screen_cache={folder / 'screenings'}")
    config = copy.deepcopy(config.data)
    config.p2r.media_cache.directory = str(cache) if cache else None
    processor = hf_processor(str(folder / "model"))
    dataset = {STOCK: MultiTurnSFTDataset, OURS: P2RSFTDataset}[side]
    return dataset([file], processor.tokenizer, {**config, "ignore_input_ids_mismatch": True}, processor=processor)


def measure_sft(folder: Path, clips: Clips, samples: int) -> dict[str, float]:
    """Each sample is prepared by each side in turn; and by ours with the disk cache, in a second epoch."""
    file = parquet(folder, sft_rows(clips.take(samples)))
    with contextlib.redirect_stdout(io.StringIO()):
        sets = {
            STOCK: sft_dataset(STOCK, folder, file),
            OURS: sft_dataset(OURS, folder, file),
            "cached": sft_dataset(OURS, folder, file, cache=folder / "frames"),
        }
    times = {name: [] for name in sets}
    for dataset in sets.values():
        dataset[0]
    for i in range(samples):
        sets["cached"][i]  # the first epoch
        for name, dataset in sets.items():
            times[name].append(seconds(lambda dataset=dataset, i=i: dataset[i]))
    wall = {name: statistics.median(values) for name, values in times.items()}
    for name, label in ((OURS, "SFT sample preparation"), ("cached", "the same, later epochs with disk cache")):
        milliseconds = [f"{wall[side] * 1e3:.0f} ms" for side in (STOCK, name)]
        report(label, *milliseconds, f"{wall[STOCK] / wall[name]:.2f} x", f"median of {samples}")
    return {"sft_prep_ratio": wall[STOCK] / wall[OURS]}


# --- Where the time goes ---------------------------------------------------------------------------------------------


def profiled(function: Callable[[], object]) -> None:
    """Print the ten functions that take most time; what runs in threads is run in this one, to be seen."""

    def run_now(pool: ThreadPoolExecutor, work: Callable, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    submit, ThreadPoolExecutor.submit = ThreadPoolExecutor.submit, run_now
    try:
        with contextlib.redirect_stdout(io.StringIO()), cProfile.Profile() as profile:
            function()
    finally:
        ThreadPoolExecutor.submit = submit
    pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(10)


def profile_missed(missed: list[str], workers: dict[str, Worker], folder: Path, clips: Clips) -> None:
    rl = parquet(folder, rl_rows(clips.take(200)))
    sft = parquet(folder, sft_rows(clips.take(4)))
    start = start_up(OURS, folder, rl)

    def prepare() -> None:
        dataset = sft_dataset(OURS, folder, sft)
        for i in range(len(dataset)):
            dataset[i]

    runs = {
        "agent_wall_ratio": lambda: workers[OURS].roll_out(clips.take(1)),
        "filter_cold_ratio": start,
        "filter_warm_ratio": start,
        "sft_prep_ratio": prepare,
    }
    for name in missed:
        if name in runs:
            print(f"--- {name}, our side")
            profiled(runs[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer prompts, videos and rounds; ends within 50 seconds")
    parser.add_argument("--profile", action="store_true", help="profile our side of each target that is missed")
    recording.add_option(parser)
    arguments = parser.parse_args()
    contents, stock_prompts, our_prompts, rounds, batch, sample, our_sample = (
        (1, 1, 4, 1, None, 3, 200) if arguments.quick else (8, 4, PROMPTS, 7, 4, 64, VIDEOS)
    )
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # with more, a busy neighbour on one core decides the figures
    install_reader()  # for both sides
    with tempfile.TemporaryDirectory(prefix="p2r", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = folder / "datasets"
        datasets.disable_caching()  # as in a new process, whose fingerprint of verl's filter differs
        clips = Clips(folder, contents)
        write_model(folder / "model")
        report("1 prompt, 8 rollouts, 16 frames of 128·28²", STOCK, OURS, "ratio")
        configure(OURS, folder)  # composed here, for the children too
        found = measure_memory(folder, clips, stock_prompts, our_prompts)
        start_ray()
        with contextlib.redirect_stdout(io.StringIO()):
            workers = {side: Worker(side, folder) for side in (STOCK, OURS)}
        found |= measure_agent(workers, clips, rounds, batch)
        found |= measure_filter(folder, clips, sample, our_sample)
        found |= measure_sft(folder, clips, sample)
        missed = [n for n, target in TARGETS.items() if (found[n] > target if n in AT_MOST else found[n] < target)]
        if missed:
            print("missed: " + ", ".join(f"{n} {found[n]:.4g} (target {TARGETS[n]:g})" for n in missed))
        if arguments.profile:
            profile_missed(missed, workers, folder, clips)
        ray.shutdown()
    recording.finish("media", {name: round(found[name], 3) for name in TARGETS}, arguments)


if __name__ == "__main__":
    main()
