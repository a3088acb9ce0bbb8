# SPDX-License-Identifier: Apache-2.0
"""The command `verl-p2r-eval`, or `python -m data_tools.evaluate`.

It exits with 1 if more items were lost than allowed or a check fails, and with 2 if it cannot do what it was asked to.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from data_tools.evaluate.analyses import (
    mismatch_command,
    mismatch_eval_command,
    report_command,
    sufficiency_command,
)
from data_tools.evaluate.inputs import read_runs, score_runs, server_of
from data_tools.evaluate.options import (
    BaseUrl,
    Concurrency,
    MaxLost,
    Model,
    Out,
    Prepared,
    Protocol,
    RunFolder,
    Runs,
    TrainedOn,
)
from data_tools.terminal import console, errors, exit_if_failed, kept_bar, say, show_step

app = typer.Typer(help="Evaluation on the paper's seven benchmarks.", no_args_is_help=True)


@app.command("prepare")
def prepare_command(
    benchmark: Annotated[str, typer.Argument(help="vsi_bench, video_mmmu, mmvu, …; video_r1 for Video-R1's files.")],
    source: Annotated[Path, typer.Argument(help="Folder of the download; for video_r1 a JSON file.")],
    out: Out,
    protocol: Protocol = "video_r1",
    media_root: Annotated[
        Path | None, typer.Option(help="Folder of all media, SOURCE or one above it; default: SOURCE.")
    ] = None,
    revision: Annotated[str, typer.Option(help="Revision of the download; default: what the hub's client noted.")] = "",
    partial: Annotated[bool, typer.Option("--partial", help="Accept counts other than the published ones.")] = False,
) -> None:
    """Turn downloaded official files into records, and a manifest with hashes, counts and missing media.

    Example: verl-p2r-eval prepare mmvu downloads/MMVU --media-root downloads --out prepared/mmvu
    """
    from data_tools.evaluate.prepare import prepare

    with errors():
        done = prepare(
            benchmark,
            source,
            out,
            protocol=protocol,
            media_root=media_root,
            revision=revision,
            partial=partial,
        )
    say(f"{done.adapter.title}: {done.items:,} items in {out}, revision {done.revision or 'unknown'}")
    for line in done.differences:
        say(f"  not as published: {line}", "yellow")
    if done.missing:
        say(f"{len(done.missing):,} media are missing; all are listed in {out / 'manifest.json'}. The first:", "yellow")
        for path in done.missing[:5]:
            say(f"  {path}", "dim")


@app.command("run")
def run_command(
    prepared: Annotated[list[str], typer.Argument(help="Outputs of `prepare`.")],
    out: Out,
    media_root: Annotated[Path, typer.Option(help="Media root that `prepare` was given.")],
    model: Model = None,
    base_url: BaseUrl = None,
    prompt: Annotated[
        str, typer.Option(help="process_aware, chain_of_thought, direct, or a text file.")
    ] = "process_aware",
    frames: Annotated[int, typer.Option(min=2, help="Most frames of a video.")] = 32,
    pixels: Annotated[int, typer.Option(min=784, help="Most pixels of a frame.")] = 256 * 28 * 28,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature.")] = 0.01,
    top_p: Annotated[float, typer.Option(help="Nucleus of sampling.")] = 0.001,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a reply; the paper states none.")] = 2048,
    concurrency: Concurrency = 64,
    video_as: Annotated[str, typer.Option(help="video for vLLM; images for servers without video.")] = "video",
    patch_size: Annotated[int, typer.Option(min=1, help="Patch size: 14 for Qwen2.5-VL, 16 for Qwen3-VL.")] = 14,
    frame_cache: Annotated[Path | None, typer.Option(help="Folder for decoded frames, which later runs reuse.")] = None,
    max_lost: MaxLost = 0.01,
) -> None:
    """A model behind an OpenAI-compatible server answers every item; after a stop, start it again to continue.

    Example: verl-p2r-eval run prepared/* --media-root downloads --model p2r --base-url http://localhost:8000/v1
    --out runs/p2r
    """
    from data_tools.evaluate.run import DEFAULTS, evaluate
    from data_tools.records.files import files_of
    from data_tools.steps.run import count_records

    with errors():
        settings = replace(
            server_of(DEFAULTS, model, base_url, concurrency),
            prompt_template=prompt,
            temperature=temperature,
            max_tokens=max_tokens,
            extra_body={"top_p": top_p},
            media=replace(DEFAULTS.media, max_frames=frames, video_max_pixels=pixels),
            video_as=video_as,  # type: ignore[arg-type]
            patch_size=patch_size,
        )
        files = files_of(prepared)
        with kept_bar("run", count_records(files)) as on_record:
            report = evaluate(
                files,
                out,
                settings,
                media_root,
                frame_cache=frame_cache,
                max_reject_share=max_lost,
                on_record=on_record,
            )
    show_step(report, out)
    exit_if_failed(report, remedy="start again, which asks only the lost items, or raise --max-lost")


@app.command("score")
def score_command(
    runs: Runs,
    protocol: Protocol = "video_r1",
    out: Annotated[Path | None, typer.Option(help="Also write scores.json and scores.md into this folder.")] = None,
    prepared: Prepared = None,
    max_lost: MaxLost = 0.01,
    trained_on: TrainedOn = None,
    check: Annotated[
        str | None,
        typer.Option(help="A published row, such as videop2r-base: fail if a score differs by more than 2 points."),
    ] = None,
) -> None:
    """Show scores and the published ones, with intervals, categories, lost items and truncation.

    Example: verl-p2r-eval score runs/base runs/p2r --out scores
    """
    from data_tools.evaluate.tables import markdown

    with errors():
        scored = score_runs(read_runs(runs, prepared), protocol, max_lost, trained_on)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / "scores.json").write_text(json.dumps(scored, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            (out / "scores.md").write_text(markdown(scored), encoding="utf-8")
    for line in markdown(scored).splitlines():
        say(line)
    if check is not None and not _check(scored, check):
        raise typer.Exit(1)


@app.command("compare")
def compare_command(
    first: RunFolder,
    second: RunFolder,
    protocol: Protocol = "video_r1",
    prepared: Prepared = None,
    resamples: Annotated[int, typer.Option(min=100, help="Number of bootstrap resamples.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
) -> None:
    """Test whether SECOND is better than FIRST: a paired bootstrap over videos, on the items that both have.

    Example: verl-p2r-eval compare runs/grpo runs/pa-grpo
    """
    from data_tools.evaluate.tables import heads, percent, title_of
    from verl_p2r.evaluation import compare

    with errors():
        one, two = read_runs([first, second], prepared)
        result = compare(one.records, two.records, protocol, resamples=resamples, seed=seed)
        scored = score_runs([one, two], protocol, 1.0, None)
    for line in "\n".join(heads(scored)).splitlines():
        say(line)
    for name, row in result.items():
        say(
            f"{title_of(name)}: {percent(row['first'])} → {percent(row['second'])}, difference "
            f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}], p = {row['p']:.3f}, "
            f"{row['n']:,} items on {row['videos']:,} videos, {row['wins']:,} better, {row['losses']:,} worse"
        )


def _check(scored: list[dict[str, Any]], name: str) -> bool:
    from data_tools.evaluate.tables import check, title_of
    from verl_p2r.evaluation.references import references

    with errors():
        if name not in references():
            raise ValueError(f"no published row is called {name!r}: name one of {', '.join(references())}")
        reference = references()[name]
        if any(run["protocol"] != reference.protocol for run in scored):
            raise ValueError(f"{name} is comparable under protocol {reference.protocol} only: name it by --protocol")
        for run in scored:
            if not check(run, reference):
                has = ", ".join(title_of(benchmark) for benchmark in reference.scores)
                raise ValueError(f"{run['name']} has no benchmark of {name}, which has {has}: name another row")
    passed = True
    console.print()
    for run in scored:
        for benchmark, own, published, near in check(run, reference):
            passed = passed and near
            say(
                f"{run['name']}, {title_of(benchmark)}: {own:.1f}, published {published:.1f}: "
                f"{'within 2 points' if near else 'NOT within 2 points'}",
                "green" if near else "red",
            )
    return passed


for _name, _command in (
    ("mismatch", mismatch_command),
    ("mismatch-eval", mismatch_eval_command),
    ("sufficiency", sufficiency_command),
    ("report", report_command),
):
    app.command(_name)(_command)
