# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a video on its way to the trainer: verl's agent loop worker against ours.

    python benchmarks/media.py [--quick] [--profile] [--record]

One run makes the clips and measures both sides on them in turn, with our PyAV reader and one torch thread. The worker
classes are verl's and ours (`support/agent_workers.py`); the inference server answers at once, the reward worker
returns 1, and TransferQueue is its serializer with a list behind it. A prompt is a clip of 8 s at 25 fps, of which
16 frames of 128 · 28² pixels are taken; it has 8 rollouts. `media_datasets.py` measures the datasets. `--profile`
shows where the time of a missed target goes. The last line is a JSON object: counts and bytes per prompt on our side,
otherwise how many times faster ours is (`rss_ratio`: the share of memory).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

import head_start  # isort: skip
from media_sides import (  # isort: skip
    CLIP,
    OURS,
    ROLLOUTS,
    STOCK,
    configure,
    missed,
    profiled,
    report,
    seconds,
    write_model,
)

import ray
import recording
import torch
from agent_workers import PROMPTS, Worker, counted, peak_memory
from clips import Clips

from verl_p2r.media.decode import install_reader

MIB = 2**20
TARGETS = {  # at most for counts, bytes and memory; at least for speed
    "decodes": 1,
    "processor_calls": 1,
    "tq_bytes": 19 * MIB,
    "agent_wall_ratio": 8,
    "rss_ratio": 0.25,
}
AT_MOST = ("decodes", "processor_calls", "tq_bytes", "rss_ratio")


@contextlib.contextmanager
def prepared(contents: int) -> Iterator[tuple[Path, Clips]]:
    """A folder with the model and clips; the configuration is composed, for child processes too."""
    with tempfile.TemporaryDirectory(prefix="p2r", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_model(folder / "model")
        configure(OURS, folder)
        yield folder, Clips(folder, contents, **CLIP)


def measure_memory(stock_prompts: int, our_prompts: int) -> dict[str, float]:
    """Each side in a child forked after the imports, before this process connects to Ray."""
    head_start.ray_address()
    peaks = {}
    with prepared(8) as (folder, clips):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one prompt, once, and no memory; within 50 seconds")
    parser.add_argument("--profile", action="store_true", help="profile our side of a missed speed target")
    recording.add_option(parser)
    arguments = parser.parse_args()
    contents, rounds, batch = (1, 0, None) if arguments.quick else (8, 7, 4)
    head_start.collect_again()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # with more, a busy neighbour on one core decides the figures
    install_reader()  # for both sides
    report("1 prompt, 8 rollouts, 16 frames of 128·28²", STOCK, OURS, "ratio")
    found = {} if arguments.quick else measure_memory(4, PROMPTS)
    head_start.connect_to_ray()
    with prepared(contents) as (folder, clips):
        with contextlib.redirect_stdout(io.StringIO()):
            workers = {side: Worker(side, folder) for side in (STOCK, OURS)}
        found |= measure_agent(workers, clips, rounds, batch)
        if "agent_wall_ratio" in missed(found, TARGETS, AT_MOST) and arguments.profile:
            profiled(lambda: workers[OURS].roll_out(clips.take(1)))
    ray.shutdown()
    head_start.end_ray()
    recording.finish("media", {name: round(found[name], 3) if name in found else None for name in TARGETS}, arguments)


if __name__ == "__main__":
    main()
