# SPDX-License-Identifier: Apache-2.0
"""Time of videos in the datasets, verl's against ours: the length filter as RL starts, and preparing SFT samples.

    python benchmarks/media_datasets.py [--quick] [--profile] [--record]

One run makes the clips and measures both sides on them in turn, with our PyAV reader and one torch thread. A row has a
clip of 8 s at 25 fps, of which 16 frames of 128 · 28² pixels are taken. Starts are scaled from fewer videos to 2,000.
`--profile` shows where the time of a missed target goes. The last line is a JSON object: how many times faster ours is.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "support"))

from media_sides import (  # isort: skip
    CLIP,
    OURS,
    STOCK,
    composed,
    configure,
    missed,
    parquet,
    profiled,
    report,
    rl_rows,
    seconds,
    sft_rows,
    write_model,
)

import datasets
import recording
import torch
from clips import Clips
from verl.utils import hf_processor
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_p2r.media.decode import install_reader
from verl_p2r.plugin.datasets.rl_dataset import P2RDataset
from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset

VIDEOS = 2000  # whose filtering is reported
TARGETS = {"filter_cold_ratio": 100, "filter_warm_ratio": 1000, "sft_prep_ratio": 2}


def start_up(side: str, folder: Path, file: str, screening: bool = True) -> Callable[[], object]:
    """One side's RL dataset, from its file to the filtered rows."""
    config = copy.deepcopy(configure(side, folder).data)
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


def profile_missed(names: list[str], folder: Path, clips: Clips) -> None:
    """Profile our side of each figure that missed its target."""
    rl = parquet(folder, rl_rows(clips.take(200)))
    sft = parquet(folder, sft_rows(clips.take(4)))
    start = start_up(OURS, folder, rl)

    def prepare() -> None:
        dataset = sft_dataset(OURS, folder, sft)
        for i in range(len(dataset)):
            dataset[i]

    for name in names:
        print(f"--- {name}, our side")
        profiled(prepare if name == "sft_prep_ratio" else start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer videos; within 50 seconds")
    parser.add_argument("--profile", action="store_true", help="profile our side of each target that is missed")
    recording.add_option(parser)
    arguments = parser.parse_args()
    contents, sample, our_sample = (1, 2, 30) if arguments.quick else (8, 64, VIDEOS)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # with more, a busy neighbour on one core decides the figures
    install_reader()  # for both sides
    with tempfile.TemporaryDirectory(prefix="p2r", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = folder / "datasets"
        datasets.disable_caching()  # as in a new process, whose fingerprint of verl's filter differs
        clips = Clips(folder, contents, **CLIP)
        write_model(folder / "model")
        report("videos of 16 frames of 128·28²", STOCK, OURS, "ratio")
        found = measure_filter(folder, clips, sample, our_sample) | measure_sft(folder, clips, sample)
        names = missed(found, TARGETS, at_most=())
        if arguments.profile and names:
            profile_missed(names, folder, clips)
    recording.finish("media_datasets", {name: round(value, 3) for name, value in found.items()}, arguments)


if __name__ == "__main__":
    main()
