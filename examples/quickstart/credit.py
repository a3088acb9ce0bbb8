# SPDX-License-Identifier: Apache-2.0
r"""Which credit rule gives the best gradient? Measured at fixed checkpoints, without training.

    python examples/quickstart/credit.py                      # after `make quickstart`: SFT and the end of RL
    python examples/quickstart/credit.py --quick              # few prompts, wide intervals
    python examples/quickstart/credit.py --checkpoint SFT=outputs/compare/sft/checkpoints/global_step_420/huggingface \
      --data outputs/compare/data/rl_train.parquet --out outputs/credit_hard

First it samples responses and differentiates them. This takes most of the time and writes one file for each prompt to
`OUT/gradients`, so a second start resumes. Then it applies each credit rule under each noise level and writes
`OUT/credit.json`, from which `credit_report.py` draws `credit.png` and prints tables.
"""

import hashlib
import json
import math
import multiprocessing as mp
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Annotated

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for each worker process

import credit_report
import pyarrow.parquet as pq
import torch
import typer
from credit_gradients import Policy, PromptGradients
from credit_numbers import Interval, Moments, measure
from credit_rules import GROUP, PARTS, REFERENCE, RULES, Noise, moments, true_gradient
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

BATCH = 16
"""Prompts a step, as in `rl.sh`."""
KINDS = 4
"""Kinds of question, which come in turn in the data."""
NOISE = ("0,0", "0.3,0", "0,0.3")
console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Collection:
    """Everything that determines the stored gradients of a prompt; kept as `manifest.json` next to them.

    Args:
        weights: digest of the checkpoint's weights.
        data: digest of the parquet file.
        samples: responses to each prompt.
        dims: length of a sketched gradient.
        seed: seed of sampling.
    """

    weights: str
    data: str
    samples: int
    dims: int
    seed: int

    def open(self, folder: Path) -> None:
        """Prepare a folder; gradients of another collection in it are deleted."""
        manifest = folder / "manifest.json"
        if manifest.exists() and json.loads(manifest.read_text()) != asdict(self):
            console.print(f"{folder} holds gradients made with other settings: starting again")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps(asdict(self), indent=1) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def choose(rows: int, number: int) -> list[int]:
    """Choose rows spread evenly over the data, the same number of each kind of question.

    >>> choose(40, 8)
    [0, 1, 2, 3, 20, 21, 22, 23]
    """
    turns = number // KINDS
    return [KINDS * (turn * (rows // KINDS) // turns) + kind for turn in range(turns) for kind in range(KINDS)]


_policy: Policy | None = None  # one for each worker process


def _start_worker(folder: Path, dims: int) -> None:
    global _policy  # an executor's initializer has no other place for it
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _policy = Policy(folder, dims)


def _die_with_parent() -> None:
    """End a worker whose parent was killed, which a process pool does not do by itself."""
    if parent := mp.parent_process():
        wait([parent.sentinel])
        os._exit(1)


def _collect(columns: dict, path: Path, samples: int, seed: list[int]) -> None:
    """Write the gradients of one prompt; the file appears only when it is whole."""
    assert _policy is not None
    partial_file = path.with_suffix(".partial")
    torch.save(vars(_policy.gradients_of(columns, samples, seed)), partial_file)
    partial_file.rename(path)


@dataclass(frozen=True)
class Measured:
    """One prompt under every noise level."""

    truth: torch.Tensor
    right: torch.Tensor
    moments: list[dict[str, Moments]]


def _measure_prompt(path: Path, noises: list[Noise], seed: int) -> bytes:
    """Measure one prompt; returns a pickled `Measured`, because the pool would open a file for each of its tensors."""
    prompt = PromptGradients(**torch.load(path))
    share = prompt.count / prompt.count.sum()
    all_rules = {**RULES, **PARTS}
    measured = [moments(prompt, noise, all_rules, seed) for noise in noises]
    return pickle.dumps(Measured(true_gradient(prompt), share @ prompt.right, measured))


def summarise(prompts: list[Measured], noises: list[Noise], batch: int = BATCH) -> dict:
    """One checkpoint's entry in `credit.json`.

    Args:
        prompts: the measured prompts.
        noises: the noise levels, in the order in which they were measured.
        batch: prompts a step.
    """
    truth = torch.stack([prompt.truth for prompt in prompts])
    perception, answer = torch.stack([prompt.right for prompt in prompts]).mean(0).tolist()
    levels = []
    for number, noise in enumerate(noises):
        stacked = {n: Moments.stack([p.moments[number][n] for p in prompts]) for n in (*RULES, *PARTS)}
        found = measure(stacked, truth, batch, REFERENCE)
        entry = {name: {key: _numbers(value) for key, value in by.items()} for name, by in found.items()}
        rules, parts = ({name: entry[name] for name in names} for names in (RULES, PARTS))
        levels.append({"flipped": asdict(noise), "rules": rules, "parts": parts})
    return {"prompts": len(prompts), "perception": round(perception, 3), "answer": round(answer, 3), "levels": levels}


def _numbers(interval: Interval) -> list[float | None]:
    """Value, low and high; None for NaN, which JSON does not have."""
    return [None if math.isnan(number) else number for number in vars(interval).values()]


def _watch(what: str, futures: Iterable[Future]) -> list:
    """Show a progress bar until all futures are done; return their results in order."""
    futures = list(futures)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for _ in progress.track(as_completed(futures), total=len(futures), description=what):
            pass
    return [future.result() for future in futures]


def read_noise(text: str) -> Noise:
    """Read `VERDICTS,ANSWERS`.

    Raises:
        typer.BadParameter: not two shares in [0, 1].

    >>> read_noise("0.3,0")
    Noise(verdicts=0.3, answers=0.0)
    """
    try:
        verdicts, answers = map(float, text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: give two shares as VERDICTS,ANSWERS, for example 0.3,0") from None
    if not all(0 <= share <= 1 for share in (verdicts, answers)):
        raise typer.BadParameter(f"{text!r}: a share lies between 0 and 1")
    return Noise(verdicts, answers)


def read_checkpoint(text: str) -> tuple[str, Path]:
    """Read `NAME=FOLDER`.

    Raises:
        typer.BadParameter: it has another form, or the folder has no weights.
    """
    name, _, folder = text.partition("=")
    if not folder or "/" in name:
        raise typer.BadParameter(f"{text!r}: give NAME=FOLDER, for example SFT=outputs/quickstart/sft/model")
    if not (Path(folder) / "model.safetensors").is_file():
        raise typer.BadParameter(
            f"{folder} has no model.safetensors: run `make quickstart` first, or name a checkpoint"
        )
    return name, Path(folder)


def measure_checkpoint(
    name: str,
    folder: Path,
    data: Path,
    out: Path,
    noises: list[Noise],
    prompts: int,
    collection: Collection,
    workers: int,
) -> dict:
    """Collect what is missing for one checkpoint, then measure all rules.

    Args:
        name: as shown.
        folder: the Hugging Face model folder.
        data: parquet file with the prompts.
        out: folder for the gradients of this checkpoint.
        noises: the noise levels.
        prompts: number of prompts.
        collection: the settings of sampling.
        workers: number of processes.
    """
    rows = pq.read_table(data).to_pylist()
    files = {row: out / f"{row:05d}.pt" for row in choose(len(rows), prompts)}
    collection.open(out)
    missing = {row: path for row, path in files.items() if not path.exists()}
    if len(missing) < len(files):
        console.print(f"{name}: {len(files) - len(missing)} of {len(files)} prompts were collected earlier")
    start: Callable[[], None] = partial(_start_worker, folder, collection.dims)
    with ProcessPoolExecutor(workers, mp.get_context("spawn"), start) as pool:
        try:
            _watch(
                f"{name}: gradients",
                (
                    pool.submit(_collect, rows[row], path, collection.samples, [collection.seed, row])
                    for row, path in missing.items()
                ),
            )
            measured = _watch(
                f"{name}: rules",
                (pool.submit(_measure_prompt, path, noises, collection.seed + row) for row, path in files.items()),
            )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return summarise([pickle.loads(each) for each in measured], noises)


def main(
    checkpoint: Annotated[list[str], typer.Option(help="NAME=FOLDER of a checkpoint; may be repeated.")] = [  # noqa: B006
        "SFT=outputs/quickstart/sft/model",
        "end of RL=outputs/quickstart/rl/model",
    ],
    data: Annotated[Path, typer.Option(help="Parquet file with the prompts.")] = Path(
        "outputs/quickstart/data/rl_train.parquet"
    ),
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("outputs/credit"),
    noise: Annotated[list[str], typer.Option(help="Flipped shares VERDICTS,ANSWERS; may be repeated.")] = list(NOISE),  # noqa: B006
    prompts: Annotated[int, typer.Option(min=4, help="Prompts of each checkpoint, a multiple of 4.")] = 384,
    samples: Annotated[int, typer.Option(min=16, help="Responses to each prompt.")] = 256,
    dims: Annotated[int, typer.Option(min=64, help="Length of a sketched gradient.")] = 4096,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one core each.")] = 2,
    seed: int = 0,
    quick: Annotated[bool, typer.Option(help="64 prompts, 32 responses, short sketches.")] = False,
) -> None:
    """Measure each credit rule at each checkpoint and noise level; write credit.json and credit.png."""
    if quick:
        prompts, samples, dims = 64, 32, 1024
    noises, folders = [read_noise(text) for text in noise], dict(read_checkpoint(text) for text in checkpoint)
    rows = pq.read_metadata(data).num_rows
    if prompts % KINDS or prompts > rows:
        raise typer.BadParameter(f"--prompts is {prompts}: give a multiple of {KINDS}, at most {rows}")
    entries = {}
    for name, folder in folders.items():
        collection = Collection(digest(folder / "model.safetensors"), digest(data), samples, dims, seed)
        gradients = out / "gradients" / name.replace(" ", "_")
        entries[name] = measure_checkpoint(name, folder, data, gradients, noises, prompts, collection, workers)
    settings = {"batch": BATCH, "group": GROUP, "samples": samples, "dims": dims, "seed": seed}
    result = out / "credit.json"
    result.write_text(json.dumps({**settings, "checkpoints": entries}, ensure_ascii=False) + "\n", encoding="utf-8")
    credit_report.main(result)


if __name__ == "__main__":
    typer.run(main)
