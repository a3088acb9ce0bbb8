# SPDX-License-Identifier: Apache-2.0
"""What the commands print: progress bars, reports of steps, errors."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from data_tools.records.left_out import RejectedRecord
    from data_tools.steps.run import StepReport
    from data_tools.steps.to_parquet import Report

console = Console()

SHOW_S = 0.1  # seconds between updates of a progress bar; an update takes as long as a record

_WRITABLE = "name a place that this user may write, or change its permissions"
_REMEDIES = {
    errno.ENOSPC: "free some space there, or name an output on another disk; an earlier output is unchanged",
    errno.EDQUOT: "free some of your quota, or name an output on another disk; an earlier output is unchanged",
    errno.EFBIG: "name an output on a disk that takes files of this size; an earlier output is unchanged",
    errno.EROFS: "name an output on another disk, or mount this one for writing",
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.ENOENT: "it was removed or never existed: check the name, and run this again",
    errno.ENOTDIR: "part of the path is a file, not a folder: check the name",
    errno.EEXIST: "something else is there: name another output, or move that away",
    errno.EISDIR: "name a file, not a folder",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "its symbolic links form a circle or lead nowhere: name the place itself",
    errno.EBUSY: "it is in use, for example as a mount point: name a folder below it",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.EIO: "check the disk, or the connection to it",
    errno.ESTALE: "the network folder has changed on its server: mount it again",
}


@contextmanager
def errors() -> Iterator[None]:
    """Print errors that the user can fix on one line, and exit with code 2."""
    try:
        yield
    except (ValueError, OSError, sqlite3.Error) as error:
        say(" ".join((explained(error) if isinstance(error, OSError) else str(error)).split()), "red")
        raise typer.Exit(2) from None


def explained(error: OSError) -> str:
    """Describe what the operating system refused, where, and what to do about it."""
    if error.errno is None:  # raised by a library
        return str(error)
    what = os.strerror(error.errno)
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    remedy = _REMEDIES.get(error.errno)
    return f"{where}{what}: {remedy}" if remedy else f"{where}{what}"


def _progress(*columns: ProgressColumn) -> Progress:
    """Make a bar that disappears at its end; in a log, where it would only leave blank lines, it shows nothing."""
    own = (*columns, TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*own, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def byte_bar(what: str, files: Sequence[Path]) -> Iterator[Callable[[int], object]]:
    """Show progress over the bytes of files."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with _progress(*columns) as progress:
        task = progress.add_task(what, total=sum(file.stat().st_size for file in files))
        yield lambda count: progress.advance(task, count)


@contextmanager
def count_bar(what: str, total: int) -> Iterator[Callable[[], object]]:
    """Show progress over countable things."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with _progress(*columns) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def kept_bar(what: str, total: int) -> Iterator[Callable[[bool], object]]:
    """Show progress over records: records per second, remaining time, and the share that goes on."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[kept]}"),
    )
    done = kept = 0
    shown = 0.0
    with _progress(*columns) as progress:
        task = progress.add_task(what, total=total, rate="", kept="")

        def show() -> None:
            nonlocal shown
            shown = time.monotonic()
            speed = progress.tasks[0].speed
            rate = f"{speed:,.1f}/s" if speed else ""
            progress.update(task, completed=done, rate=rate, kept=f"kept {kept / max(done, 1):.1%}")

        def on_record(on: bool) -> None:
            nonlocal done, kept
            done, kept = done + 1, kept + on
            if time.monotonic() - shown > SHOW_S:
                show()

        yield on_record


def show_step(report: StepReport, folder: Path) -> None:
    """Print the report of a step."""
    say(f"{report.step}: {report.read:,} records read, {report.written:,} kept in {folder}")
    for reason, count in report.dropped.items():
        say(f"  dropped, {reason}: {count:,} (dropped.jsonl)")
    show_rejects(report.rejected, report.first, folder)


def show_export(report: Report, folder: Path) -> None:
    """Print the report of an export."""
    splits = ", ".join(f"{split} {count:,}" for split, count in sorted(report.splits.items())) or "none"
    say(f"{report.read:,} records read, {report.written:,} written to {folder} ({splits})")
    if report.written and "val" not in report.splits:
        say(
            "no val.parquet: no medium was assigned to validation; raise the share, or name other data.val_files",
            "yellow",
        )
    if report.media[0]:
        say(f"{report.media[0]:,} media decoded, {report.media[1]:,} of them failed")
    show_rejects(report.reasons, report.first, folder)


def show_differences(different: Sequence[str]) -> None:
    """Print how counts differ from the published ones."""
    for line in different or ["the counts match the published ones"]:
        say(line, "yellow" if different else "green")


def show_rejects(reasons: Mapping[str, int], first: Sequence[RejectedRecord], folder: Path | None) -> None:
    """Print how many records were rejected, why, and the first of them."""
    where = f", all of them in {folder / 'rejects.jsonl'}" if folder and reasons else ""
    say(f"{sum(reasons.values()):,} records rejected{where}", "yellow" if reasons else None)
    for reason, count in reasons.items():
        say(f"  {reason}: {count:,}")
    for reject in first:
        say(f"  {reject}", "dim")


def say(text: str, style: str | None = None) -> None:
    """Print a line literally: nothing in it acts as markup, moves the cursor or fails to print."""
    text = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    text = text.encode(console.encoding, "backslashreplace").decode(console.encoding)
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def exit_if_failed(*reports: StepReport | Report, remedy: str = "repair the data, or raise max_reject_share") -> None:
    """Exit with code 1 if a step failed.

    Args:
        *reports: what the steps did.
        remedy: what to do when too many records were rejected.
    """
    for report in reports:
        if report.failed and not report.written:
            say("no record is left: rejects.jsonl and dropped.jsonl say why", "red")
        elif report.failed:
            say(f"too many records were rejected, or a file was damaged: {remedy}", "red")
    if any(report.failed for report in reports):
        raise typer.Exit(1)
