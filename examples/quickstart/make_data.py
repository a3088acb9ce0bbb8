# SPDX-License-Identifier: Apache-2.0
"""Write the quickstart's task: noisy SFT data, clean RL and validation data.

    python examples/quickstart/make_data.py OUT --seed 0

It writes `OUT/videos/*.mp4`, questions about them as records in `OUT/records/{sft_train,sft_val,rl_train,rl_val}.jsonl`
(those for SFT with responses), and `OUT/{sft_train,…}.parquet`, which the data tools make from the records and verl
trains on. Use the same functions for your own videos and questions: `record_of` and `export`.

The folder appears only when it is whole, with its arguments in ``OUT/manifest.json``; a second run with the same
arguments leaves it as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import task  # noqa: E402

from data_tools.steps.to_parquet import ExportSettings, to_parquet  # noqa: E402

DATA_SOURCE = "toy_motion"
PROMPT = HERE / "prompt.txt"


def write_video(path: Path, frames: np.ndarray) -> None:
    """Encode frames as H.264 in an mp4 file.

    Args:
        path: where to.
        frames: Shape: (frames, height, width, 3), uint8, RGB.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=task.RATE)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # The fastest preset has no adaptive quantisation, whose outcome differs from run to run now and then.
        stream.options = {"crf": "18", "preset": "ultrafast", "threads": "1"}
        for frame in frames:
            rgb = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(rgb.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode())


SFT_KINDS = ("direction", "count", "order", "direction", "count", "direction", "order", "count")
"""Kinds of the SFT clips in turn: more of what is hard to see. Colours are stated about every clip."""


def scenes(seed: int, level: task.Level, split: str, number: int) -> Iterator[tuple[random.Random, str, task.Scene]]:
    """Draw the scenes of a split, none of them twice, with kinds of question in turn.

    Yields:
        A random source of the scene's own, the kind of question to ask first, and the scene.
    """
    seen: set[task.Scene] = set()
    for i in range(number):
        rng = random.Random(f"{seed}/{split}/{i}")
        kinds = SFT_KINDS if split == "sft_train" else task.KINDS
        kind = kinds[i % len(kinds)]
        while True:
            scene = task.sample_scene(rng, level, split, rng.choice(task.families(kind)))
            if scene not in seen:
                break
        seen.add(scene)
        yield rng, kind, scene


MEDIA = {"fps": task.SAMPLED_FPS, "resized_height": task.SIDE, "resized_width": task.SIDE}
"""How the clips are sampled and sized: small, so that nothing enlarges the frames."""


def record_of(level: task.Level, question: task.Question, values: dict[str, str], clip: str, number: int = 0) -> dict:
    """A question about a clip as a record of the data tools, with its answer and the facts that answer it.

    Args:
        level: how hard the task is.
        question: the question.
        values: what the clip shows.
        clip: its name.
        number: number of the question, among those about the clip.
    """
    return {
        "problem_id": f"{clip}_{number}",
        "problem": question.text,
        "problem_type": question.problem_type,
        "options": list(question.options),
        "data_type": "video",
        "path": f"videos/{clip}.mp4",
        "media": MEDIA,
        "data_source": f"{DATA_SOURCE}/{question.kind}",
        "solution": f"<answer>{task.solve(question, values)[1]}</answer>",
        "facts": task.facts(level, values),
    }


def sft_records(
    rng: random.Random, level: task.Level, scene: task.Scene, kind: str, clip: str, number: int, noisy: bool
) -> list[dict]:
    """Records with responses about one clip, over all kinds of question that can be asked of it."""
    kinds = [kind, *(other for other in task.KINDS if other != kind and scene.family in task.families(other))]
    values = task.true_values(scene)
    records = []
    for i in range(number):
        question = task.ask(rng, level, kinds[i % 3 % len(kinds)])
        text = task.noisy_response(rng, level, question, values) if noisy else task.response(question, values)
        records.append({**record_of(level, question, values, clip, i), "output": text})
    return records


def write_split(folder: Path, final: Path, split: str, number: int, args: argparse.Namespace, tick) -> None:
    """Write one split: its clips, its records, and the parquet file made of these.

    Args:
        folder: where to write.
        final: where ``folder`` will be once it is whole; the rows name the clips there.
        split: one of ``task.SPLITS``.
        number: how many clips.
        args: the command line.
        tick: called after each clip.
    """
    level = task.HARD if args.hard else task.EASY
    records: list[dict] = []
    for i, (rng, kind, scene) in enumerate(scenes(args.seed, level, split, number)):
        clip = f"{split}_{i:05d}"
        write_video(folder / f"videos/{clip}.mp4", task.render(scene))
        if split.startswith("sft"):
            noisy = split == "sft_train"
            records += sft_records(rng, level, scene, kind, clip, args.rows_per_video if noisy else 1, noisy)
        else:
            records.append(record_of(level, task.ask(rng, level, kind), task.true_values(scene), clip))
        tick()
    if split.startswith("sft"):
        random.Random(f"{args.seed}/{split}/order").shuffle(records)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / f"records/{split}.jsonl").write_text(lines, encoding="utf-8")
    export(folder, final, split)


def export(folder: Path, final: Path, split: str) -> None:
    """Make a split's parquet file of its records, as `verl-p2r-data to-parquet` does it.

    Raises:
        RuntimeError: a record is wrong.
    """
    kind, name = split.split("_")
    share = 1.0 if name == "val" else 0.0  # what is for validation was decided with the scenes
    settings = ExportSettings(share, str(final), prompt_template=str(PROMPT), max_reject_share=0)
    report = to_parquet([folder / f"records/{split}.jsonl"], folder / "export", kind, settings)
    if report.failed:
        raise RuntimeError(f"records/{split}.jsonl: {report.rejected} of {report.read} are rejected: {report.first}")
    os.replace(folder / f"export/{name}.parquet", folder / f"{split}.parquet")
    shutil.rmtree(folder / "export")


def manifest(args: argparse.Namespace) -> dict:
    """What determines the data: the arguments, and the code that reads them."""
    files = (HERE / "task.py", HERE / "make_data.py", PROMPT)
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return {**{key: value for key, value in vars(args).items() if key != "out"}, "code": code}


def make(args: argparse.Namespace) -> bool:
    """Write the data unless it stands already.

    Returns:
        Whether anything was written.

    Raises:
        SystemExit: ``args.out`` holds something that this script did not write.
    """
    out, wanted = args.out.resolve(), manifest(args)
    record = out / "manifest.json"
    if record.is_file() and json.loads(record.read_text()) == wanted:
        return False
    if out.exists() and not record.is_file() and any(out.iterdir()):
        raise SystemExit(f"{out} holds files but no manifest.json of make_data.py: name another folder or remove it")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("videos", "records"):
        (partial / name).mkdir(parents=True)
    numbers = dict(zip(task.SPLITS, (args.sft_videos, args.sft_val, args.rl, args.val), strict=True))
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        for split, number in numbers.items():
            bar = progress.add_task(split, total=number)
            write_split(partial, out, split, number, args, lambda bar=bar: progress.advance(bar))
    (partial / "manifest.json").write_text(json.dumps(wanted, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return True


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sft-videos", type=int, default=384, help="clips for SFT")
    parser.add_argument("--rows-per-video", type=int, default=6, help="noisy SFT rows a clip")
    parser.add_argument("--sft-val", type=int, default=32, help="clips, with one clean row each, for SFT's validation")
    parser.add_argument("--rl", type=int, default=384, help="clips for RL")
    parser.add_argument("--val", type=int, default=256, help="held-out clips for RL's validation")
    parser.add_argument("--hard", action="store_true", help="more colours, more noise, firmer habits")
    args = parser.parse_args(argv)
    for name in ("sft_videos", "rows_per_video", "sft_val", "rl", "val"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


if __name__ == "__main__":
    arguments = parse_args()
    print(f"{'wrote' if make(arguments) else 'kept'} {arguments.out}")
