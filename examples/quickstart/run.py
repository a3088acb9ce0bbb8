# SPDX-License-Identifier: Apache-2.0
"""The quickstart, all stages: data, model, SFT, PA-GRPO, evaluation, report. Usually started by `make quickstart`.

Each stage that has finished is marked in `OUT/done/` and is not run again; an interrupted SFT or RL stage resumes
from its last checkpoint. Each stage's output is in `OUT/logs/`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

HERE = Path(__file__).resolve().parent
HEARTBEAT = 60.0  # seconds without a new line of progress after which one says that the stage still runs
console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Stage:
    """One command of the quickstart.

    Args:
        name: as shown, and as in `timings.json`.
        command: what to run.
        env: added to the environment.
        steps: training steps, for the progress bar; 0 when the command shows no steps.
        metrics: where verl's file logger writes those steps.
        model: (from, to): the checkpoint folder to keep under a stable name when the stage is done.
    """

    name: str
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    metrics: Path | None = None
    model: tuple[Path, Path] | None = None


def stages(out: Path, seed: int, sft_steps: int, rl_steps: int, judge: str) -> list[Stage]:
    """The quickstart's stages in order."""
    data, model, sft, rl = (out / name for name in ("data", "model", "sft", "rl"))
    python = sys.executable
    common = {"DATA": str(data), "SEED": str(seed)}
    sft_model = sft / "checkpoints" / f"global_step_{sft_steps}" / "huggingface"
    rl_model = rl / "checkpoints" / f"global_step_{rl_steps}" / "actor" / "huggingface"
    evaluate = [python, str(HERE / "evaluate.py"), "--data", str(data / "rl_val.parquet"), "--out", str(out / "eval")]
    return [
        Stage("data", [python, str(HERE / "make_data.py"), str(data), "--seed", str(seed)]),
        Stage("model", [python, str(HERE / "make_model.py"), str(model), "--seed", str(seed)]),
        Stage(
            "SFT",
            ["bash", str(HERE / "sft.sh"), f"trainer.seed={seed}"],
            {**common, "MODEL": str(model), "OUT": str(sft), "STEPS": str(sft_steps)},
            sft_steps,
            sft / "metrics.jsonl",
            (sft_model, sft / "model"),
        ),
        Stage(
            "PA-GRPO",
            ["bash", str(HERE / "rl.sh")],
            {**common, "MODEL": str(sft / "model"), "OUT": str(rl), "STEPS": str(rl_steps), "JUDGE": judge},
            rl_steps,
            rl / "metrics.jsonl",
            (rl_model, rl / "model"),
        ),
        Stage("evaluation before", [*evaluate, str(sft / "model"), "--name", "sft"]),
        Stage("evaluation after", [*evaluate, str(rl / "model"), "--name", "rl"]),
    ]


def last_step(metrics: Path | None) -> int:
    """The last step in a metrics file of verl's file logger; 0 while there is none."""
    if metrics is None or not metrics.exists():
        return 0
    lines = metrics.read_bytes().splitlines()
    return next((json.loads(line)["step"] for line in reversed(lines) if line.endswith(b"}")), 0)


def progress_bar(stage: Stage, progress: Progress) -> Callable[[int], None]:
    """Progress on a terminal: a bar.

    Returns:
        A function to call with the number of steps done.
    """
    task = progress.add_task(stage.name, total=stage.steps or 1)
    return lambda step: progress.update(task, completed=step)


def progress_lines(stage: Stage, write: Callable[[str], None], clock: Callable[[], float]) -> Callable[[int], None]:
    """Progress in a file: a line for each tenth of the steps, and one when nothing has changed for a minute.

    Args:
        stage: the stage that starts now.
        write: takes one line.
        clock: the time in seconds.

    Returns:
        A function to call with the number of steps done.
    """
    start = last = clock()
    tenths = 0

    def show(step: int) -> None:
        nonlocal last, tenths
        now = clock()
        reached = 10 * step // stage.steps if stage.steps else 0
        if reached > tenths or now - last >= HEARTBEAT:
            done = f"step {step} of {stage.steps}" if stage.steps else "running"
            write(f"{stage.name}: {done}, {now - start:.0f} s")
            last, tenths = now, max(reached, tenths)

    return show


def run(stage: Stage, log: Path, show: Callable[[int], None]) -> None:
    """Run one stage with its output in `log`.

    Args:
        stage: what to run.
        log: the file its output is appended to.
        show: called twice a second with the number of steps done.

    Raises:
        typer.Exit: with the stage's exit code, after the end of its log is shown.
    """
    with log.open("ab") as stream:
        process = subprocess.Popen(
            stage.command, stdout=stream, stderr=stream, env={**os.environ, **stage.env}, start_new_session=True
        )
        try:
            while process.poll() is None:
                time.sleep(0.5)
                show(last_step(stage.metrics))
        except BaseException:  # Ctrl-C or a signal: take the stage's own children along
            _end(process)
            raise
    if process.returncode:
        _end(process)  # what a stage that failed has left running
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        console.print(tail, markup=False, highlight=False)
        console.print(f"[red]{stage.name} failed[/] with exit code {process.returncode}; the whole output: {log}")
        raise typer.Exit(process.returncode if process.returncode > 0 else 1)
    if stage.model:
        source, target = stage.model
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def _earlier_seconds(timings: Path) -> dict[str, float]:
    """Read how long stages took that ran before; of a file that cannot be read, only that is lost."""
    try:
        return dict(json.loads(timings.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        _line(f"{timings} cannot be read and is removed: only the time of the stages that ran before is lost")
        timings.unlink()
        return {}


def _line(text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _end(process: subprocess.Popen) -> None:
    for number, patience in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def main(
    out: Path = Path("outputs/quickstart"),
    seed: int = 1,
    sft_steps: int = 420,
    rl_steps: int = 30,
    judge: Annotated[str, typer.Option(help="The perception judge of RL: facts, or self.")] = "facts",
) -> None:
    """Run what has not been run yet, then show the report."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    os.environ.setdefault("VERL_PLATFORM", "cpu")
    out = out.resolve()
    logs, timings = out / "logs", out / "timings.json"
    logs.mkdir(parents=True, exist_ok=True)
    arguments = out / "arguments.json"
    wanted = {"seed": seed, "sft_steps": sft_steps, "rl_steps": rl_steps, "judge": judge}
    # Folders of earlier versions name no judge.
    if arguments.exists() and {"judge": "facts", **json.loads(arguments.read_text())} != wanted:
        console.print(f"[red]{out} holds a run with other arguments: {arguments.read_text()}[/]; choose another --out")
        raise typer.Exit(2)
    arguments.write_text(json.dumps(wanted))
    seconds = _earlier_seconds(timings)
    done = out / "done"
    done.mkdir(exist_ok=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    todo = stages(out, seed, sft_steps, rl_steps, judge)
    for number, stage in enumerate(todo, start=1):
        name = stage.name.replace(" ", "_").lower()
        place = f"[{number}/{len(todo)}] {stage.name}"
        if (done / name).exists():
            took = f" in {seconds[stage.name]:.0f} s" if stage.name in seconds else ""
            _line(f"{place}: finished earlier{took}")
            continue
        start, before = time.monotonic(), seconds.get(stage.name, 0.0)
        log = logs / f"{name}.log"
        _line(f"{place}: started; its output: {log}")
        try:
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
                show = (
                    progress_bar(stage, progress)
                    if console.is_terminal
                    else progress_lines(stage, _line, time.monotonic)
                )
                run(stage, log, show)
        finally:  # an interrupted stage keeps what it has taken so far
            seconds[stage.name] = round(before + time.monotonic() - start, 1)
            partial = timings.with_suffix(".partial")
            partial.write_text(json.dumps(seconds))
            partial.replace(timings)
        (done / name).touch()
        _line(f"{place}: finished in {seconds[stage.name]:.0f} s")
    subprocess.run([sys.executable, str(HERE / "report.py"), str(out)], check=True)


if __name__ == "__main__":
    typer.run(main)
