# SPDX-License-Identifier: Apache-2.0
"""The commands that look at records: stats, view."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from data_tools.options import Inputs
from data_tools.terminal import byte_bar, console, count_bar, errors, say, show_differences, show_rejects


def stats_command(
    inputs: Inputs,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or name of the model's tokenizer; it measures both segments.")
    ] = None,
    published: Annotated[bool, typer.Option(help="Compare with the published counts of VideoP2R-CoT-162K.")] = False,
    png: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also draw the statistics as PNG files in this folder.")
    ] = None,
) -> None:
    """Show counts by type, source and modality, segment lengths, repeated questions, and the keep rate of each step.

    Example: verl-p2r-data stats videop2r/data/VideoP2R-162k_sft.part*.json.gz --tokenizer Qwen/Qwen2.5-VL-7B-Instruct
    """
    from data_tools.look.stats import Stats
    from data_tools.look.tokenizer import fast_tokenizer
    from data_tools.records.files import Records, files_of
    from data_tools.records.left_out import RejectLog
    from data_tools.steps.import_release import differences

    with errors(), RejectLog(Path(os.devnull)) as rejects:
        files = files_of(inputs)
        loaded = fast_tokenizer(tokenizer) if tokenizer else None
        with byte_bar("reading", files) as on_bytes:
            records = Records(files, rejects, on_bytes)
            stats = Stats.collect(records, loaded, files)
    for table in stats.tables():
        console.print(table, "")
    if published:
        show_differences(differences("sft", stats.types, records.unusable))
    show_rejects(rejects.reasons, rejects.first, None)
    if png is not None:
        from data_tools.look.stats_plots import write_plots

        with errors():
            for file in write_plots(stats, png):
                say(f"written: {file}")


def view_command(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    media_root: Annotated[Path, typer.Option(help="Folder that the paths of media are relative to.")] = Path(),
    count: Annotated[int, typer.Option(min=1, max=1000, help="Records to show.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw; the same seed shows the same records.")] = 0,
    frames: Annotated[int, typer.Option(min=1, max=64, help="The most pictures of a video.")] = 8,
) -> None:
    """Write a page that shows a sample of records: frames, texts, verdicts, why they were dropped, with filters.

    Name the folders of several steps to see what each of them dropped.

    Example: verl-p2r-data view mine/verify mine/judge --out mine.html --media-root /data/mine
    """
    from data_tools.look.selection import Selection, sources_of
    from data_tools.look.view import write_page
    from data_tools.records.left_out import RejectLog

    with errors(), RejectLog(Path(os.devnull)) as rejects:
        sources = sources_of(inputs)
        with byte_bar("reading", [file for source in sources for file in source]) as on_bytes:
            selection = Selection.draw(sources, count, seed, rejects, on_bytes)
        with count_bar("reading frames", len(selection.cards)) as on_medium:
            page = write_page(selection, out, media_root, frames, on_medium)
    show_rejects(rejects.reasons, rejects.first, None)
    if page.faults:
        say(f"{len(page.faults):,} media cannot be shown, as the page explains. The first: {page.faults[0]}", "yellow")
    shown = f"{len(selection.cards):,} of {selection.totals.total():,} records"
    say(f"{out}: {shown}, {page.bytes / (1 << 20):.1f} MiB; open it in a browser")
