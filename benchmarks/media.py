# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a video on its way to the trainer: verl's agent loop, datasets and worker against ours.

    python benchmarks/media.py [--quick] [--profile] [--record]

One run makes the clips and measures both sides on them in turn, with our PyAV reader and one torch thread. The worker
classes and datasets are verl's and ours (`support/media_sides.py`); the inference server answers at once, the reward
worker returns 1, and TransferQueue is its serializer with a list behind it. A prompt is a clip of 8 s at 25 fps, of
which 16 frames of 128 · 28² pixels are taken; it has 8 rollouts. `--profile` shows where the time of a missed target
goes. The last line is a JSON object: counts and MiB per prompt on our side, otherwise how many times faster ours is
(`rss_ratio`: the share of memory).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import cProfile
import io
import logging
import multiprocessing
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.update(VERL_PLATFORM="cpu", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", HF_DATASETS_DISABLE_PROGRESS_BARS="1"
)
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "quickstart"))
sys.path.insert(0, str(Path(__file__).parent / "support"))

import verl_p2r.plugin  # noqa: F401, I001  torch and torchvision made to fit before anything imports them

import datasets
import ray
import recording
import torch
from clips import Clips
from verl.utils import hf_processor
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.dataset.rl_dataset import RLHFDataset

from media_sides import (
    CLIP,
    MIB,
    OURS,
    PROMPTS,
    ROLLOUTS,
    STOCK,
    VIDEOS,
    Worker,
    composed,
    configure,
    counted,
    parquet,
    peak_memory,
    rl_rows,
    sft_rows,
    start_ray,
    write_model,
)
from verl_p2r.media.decode import install_reader
from verl_p2r.plugin.datasets.rl_dataset import P2RDataset
from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset

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
    """One prompt alone, which is counted first; and, if wanted, a batch, as a worker gets it in training.

    Without rounds, the time of the counted prompt is reported, warm-up included.
    """
    counts, sizes, first = {}, {}, {}
    for side, worker in workers.items():
        paths = clips.take(1)
        with counted() as counts[side]:
            first[side] = seconds(lambda worker=worker, paths=paths: worker.roll_out(paths))
        sizes[side] = sum(map(len, worker.queue.held))
        worker.queue.held.clear()
    for name in ("decodes", "processor_calls"):
        stock, ours = counts[STOCK][name], counts[OURS][name]
        report(f"{name.replace('_', ' ')}, agent side", str(stock), str(ours), f"{stock / ours:.0f} x")
    mib = [f"{sizes[side] / MIB:.2f} MiB" for side in (STOCK, OURS)]
    report("bytes into TransferQueue", *mib, f"{sizes[STOCK] / sizes[OURS]:.0f} x")
    ratios = []
    for prompts in (1, batch) if batch else (1,):
        wall = wall_times(workers, clips, rounds, prompts) if rounds else first
        ratios.append(wall[STOCK] / wall[OURS])
        milliseconds = [f"{wall[side] * 1e3:.0f} ms" for side in (STOCK, OURS)]
        label = "wall time agent-side, per prompt" + (f" of {prompts}" if prompts > 1 else "")
        report(label, *milliseconds, f"{ratios[-1]:.1f} x", f"median of {rounds}" if rounds else "once")
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
    parser.add_argument(
        "--quick", action="store_true", help="fewer prompts, videos and rounds, and no memory; within 50 seconds"
    )
    parser.add_argument("--profile", action="store_true", help="profile our side of each target that is missed")
    recording.add_option(parser)
    arguments = parser.parse_args()
    contents, rounds, batch, sample, our_sample = (1, 0, None, 2, 30) if arguments.quick else (8, 7, 4, 64, VIDEOS)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # with more, a busy neighbour on one core decides the figures
    install_reader()  # for both sides
    with tempfile.TemporaryDirectory(prefix="p2r", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = folder / "datasets"
        datasets.disable_caching()  # as in a new process, whose fingerprint of verl's filter differs
        clips = Clips(folder, contents, **CLIP)
        write_model(folder / "model")
        report("1 prompt, 8 rollouts, 16 frames of 128·28²", STOCK, OURS, "ratio")
        configure(OURS, folder)  # composed here, for the children too
        found = {} if arguments.quick else measure_memory(folder, clips, 4, PROMPTS)
        start_ray()
        with contextlib.redirect_stdout(io.StringIO()):
            workers = {side: Worker(side, folder) for side in (STOCK, OURS)}
        found |= measure_agent(workers, clips, rounds, batch)
        found |= measure_filter(folder, clips, sample, our_sample)
        found |= measure_sft(folder, clips, sample)
        missed = [n for n, value in found.items() if (value > TARGETS[n] if n in AT_MOST else value < TARGETS[n])]
        if missed:
            print("missed: " + ", ".join(f"{n} {found[n]:.4g} (target {TARGETS[n]:g})" for n in missed))
        if arguments.profile:
            profile_missed(missed, workers, folder, clips)
        ray.shutdown()
    recording.finish("media", {name: round(found[name], 3) if name in found else None for name in TARGETS}, arguments)


if __name__ == "__main__":
    main()
