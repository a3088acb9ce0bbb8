# SPDX-License-Identifier: Apache-2.0
"""The command `verl-p2r-eval`, or `python -m data_tools.evaluate`.

Exits with 1 when more was lost than allowed or a check fails, with 2 when what was asked for cannot be done.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_tools.terminal import console, errors, kept_bar, leave, say, show_step

if TYPE_CHECKING:
    from data_tools.evaluate.results import Run
    from data_tools.steps.generate import GenerateSettings

app = typer.Typer(help="Evaluation on the paper's seven benchmarks.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="The folder to write; an earlier output there is replaced.")]
RunFolder = Annotated[Path, typer.Argument(help="The output of `run`.")]
Runs = Annotated[list[Path], typer.Argument(help="Outputs of `run`.")]
Protocol = Annotated[str, typer.Option(help="video_r1, official, or a YAML file of your own.")]
Prepared = Annotated[
    list[Path] | None, typer.Option(help="Where the prepared benchmarks are now, if they were moved; may be repeated.")
]
Model = Annotated[str | None, typer.Option(help="The model's name on its server.")]
BaseUrl = Annotated[list[str] | None, typer.Option(help="A server, http://…/v1; may be repeated.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Calls in flight at once.")]
MaxLost = Annotated[float, typer.Option(help="Largest share of a benchmark's items that may be without a reply.")]


@app.command("prepare")
def prepare_command(
    benchmark: Annotated[str, typer.Argument(help="vsi_bench, video_mmmu, mmvu, …; video_r1 for Video-R1's files.")],
    source: Annotated[Path, typer.Argument(help="The folder it was downloaded to; for video_r1 a JSON file.")],
    out: Out,
    protocol: Protocol = "video_r1",
    media_root: Annotated[
        Path | None, typer.Option(help="The folder, above SOURCE, that `run` is to start paths from; default: SOURCE.")
    ] = None,
    revision: Annotated[str, typer.Option(help="Of the download; default: what the Hugging Face client noted.")] = "",
    partial: Annotated[bool, typer.Option("--partial", help="Accept other counts than the published ones.")] = False,
) -> None:
    """Official files, as downloaded, to records and a manifest with hashes, counts and missing media.

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
        say(f"  not as published, {line}", "yellow")
    if done.missing:
        say(f"{len(done.missing):,} media are missing; all are named in {out / 'manifest.json'}. The first:", "yellow")
        for path in done.missing[:5]:
            say(f"  {path}", "dim")


@app.command("run")
def run_command(
    prepared: Annotated[list[str], typer.Argument(help="Outputs of `prepare`.")],
    out: Out,
    media_root: Annotated[Path, typer.Option(help="The folder that `prepare` was given.")],
    model: Model = None,
    base_url: BaseUrl = None,
    prompt: Annotated[
        str, typer.Option(help="process_aware, chain_of_thought, direct, or a text file.")
    ] = "process_aware",
    frames: Annotated[int, typer.Option(min=2, help="The most frames of a video.")] = 32,
    pixels: Annotated[int, typer.Option(min=784, help="The most pixels of a frame.")] = 256 * 28 * 28,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling.")] = 0.01,
    top_p: Annotated[float, typer.Option(help="Of sampling.")] = 0.001,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a reply. The paper does not state its own.")] = 2048,
    concurrency: Concurrency = 64,
    video_as: Annotated[str, typer.Option(help="video for vLLM, images for servers that know images only.")] = "video",
    patch_size: Annotated[int, typer.Option(min=1, help="Of the model: 14 for Qwen2.5-VL, 16 for Qwen3-VL.")] = 14,
    frame_cache: Annotated[Path | None, typer.Option(help="A folder for decoded frames, for further runs.")] = None,
    max_lost: MaxLost = 0.01,
) -> None:
    """A model behind an OpenAI-compatible server answers every item; start it again after a stop, and it goes on.

    Example: verl-p2r-eval run prepared/* --media-root downloads --model p2r --base-url http://localhost:8000/v1
    --out runs/p2r
    """
    from data_tools.evaluate.run import DEFAULTS, evaluate
    from data_tools.records.files import files_of
    from data_tools.steps.run import count_records

    with errors():
        settings = replace(
            _server(DEFAULTS, model, base_url, concurrency),
            prompt_template=prompt,
            temperature=temperature,
            max_tokens=max_tokens,
            extra_body={"top_p": top_p},
            media=replace(DEFAULTS.media, max_frames=frames, video_max_pixels=pixels),
            video_as=video_as,  # type: ignore[arg-type]
            patch_size=patch_size,
        )
        files = files_of(prepared)
        with kept_bar("run", count_records(files)) as told:
            report = evaluate(
                files, out, settings, media_root, frame_cache=frame_cache, max_reject_share=max_lost, told=told
            )
    show_step(report, out)
    leave(report)


@app.command("score")
def score_command(
    runs: Runs,
    protocol: Protocol = "video_r1",
    out: Annotated[Path | None, typer.Option(help="Also write scores.json and scores.md into this folder.")] = None,
    prepared: Prepared = None,
    max_lost: MaxLost = 0.01,
    trained_on: Annotated[
        list[Path] | None, typer.Option(help="Training records: report how many items occur in them; may be repeated.")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(help="A published row, such as videop2r-base: fail when a score is not within 2 points."),
    ] = None,
) -> None:
    """Scores beside the paper's, with intervals, categories, lost items and truncation.

    Example: verl-p2r-eval score runs/base runs/p2r --out scores
    """
    from data_tools.evaluate.tables import markdown

    with errors():
        scored = _scored(_read(runs, prepared), protocol, max_lost, trained_on)
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
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Is SECOND better than FIRST? A paired bootstrap over videos, on the items that both have.

    Example: verl-p2r-eval compare runs/grpo runs/pa-grpo
    """
    from data_tools.evaluate.tables import heads, percent, title_of
    from verl_p2r.evaluation import compare

    with errors():
        one, two = _read([first, second], None)
        result = compare(one.records, two.records, protocol, resamples=resamples, seed=seed)
        scored = _scored([one, two], protocol, 1.0, None)
    for line in heads(scored):
        say(line)
    for name, row in result.items():
        say(
            f"{title_of(name)}: {percent(row['first'])} → {percent(row['second'])}, difference "
            f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}], p = {row['p']:.3f}, "
            f"{row['n']:,} items on {row['videos']:,} videos, {row['wins']:,} better, {row['losses']:,} worse"
        )


@app.command("mismatch")
def mismatch_command(
    run: RunFolder,
    out: Out,
    model: Model = None,
    base_url: BaseUrl = None,
    concurrency: Concurrency = 64,
) -> None:
    """How often the thinking concludes with another option than is answered: a rule first, a judge for the rest.

    Without --model only explicit conclusions are read.

    Example: verl-p2r-eval mismatch runs/p2r --model Qwen2.5-32B-Instruct --base-url http://localhost:8000/v1 --out mm
    """
    from data_tools.evaluate.mismatch import DEFAULTS, mismatch
    from data_tools.evaluate.results import read_run
    from data_tools.evaluate.tables import mismatch_markdown
    from data_tools.records.files import files_of
    from data_tools.steps.run import count_records

    with errors():
        setting = read_run(run).setting
        with kept_bar("mismatch", count_records(files_of([run]))) as told:
            report, tables = mismatch(run, out, _server(DEFAULTS, model, base_url, concurrency), told=told)
    say(f"{run.resolve().name}: {setting}; judge {model or 'none, rule only'}")
    for line in mismatch_markdown(tables).splitlines():
        say(line)
    show_step(report, out)
    leave(report)


@app.command("sufficiency")
def sufficiency_command(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    model: Model = None,
    base_url: BaseUrl = None,
    protocol: Protocol = "video_r1",
    prompt: Annotated[str, typer.Option(help="chain_of_thought, direct, or a text file.")] = "chain_of_thought",
    passes: Annotated[
        list[str] | None, typer.Option("--pass", help="observation, question or other; default: all three.")
    ] = None,
    concurrency: Concurrency = 64,
) -> None:
    """A text-only model answers from question and observation, beside the question alone and a wrong observation.

    Example: verl-p2r-eval sufficiency runs/p2r --model Qwen2.5-7B-Instruct --base-url http://localhost:8000/v1
    --out sufficiency
    """
    from data_tools.evaluate.results import read_run
    from data_tools.evaluate.sufficiency import DEFAULTS, PASSES, sufficiency
    from data_tools.evaluate.tables import sufficiency_markdown
    from verl_p2r.evaluation import score

    with errors():
        own = read_run(run)
        settings = replace(_server(DEFAULTS, model, base_url, concurrency), prompt_template=prompt)
        names = tuple(passes or PASSES)
        with kept_bar("sufficiency", len(names) * len(own.records)) as told:
            result = sufficiency(own, out, settings, protocol, passes=names, told=told)
        result["video"] = score(own.records, protocol)
    say(f"Protocol {protocol}; {own.name}: {own.setting}; text-only model {model}, prompt {prompt}")
    for line in sufficiency_markdown(result).splitlines():
        say(line)


@app.command("report")
def report_command(
    runs: Annotated[list[Path] | None, typer.Argument(help="Outputs of `run`.")] = None,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("evaluation.html"),
    rollouts: Annotated[
        Path | None, typer.Option(help="Instead of runs: a training's trainer.rollout_data_dir.")
    ] = None,
    protocol: Protocol = "video_r1",
    media_root: Annotated[Path | None, typer.Option(help="The folder that `run` was given; shows frames.")] = None,
    prepared: Prepared = None,
    count: Annotated[int, typer.Option(min=1, max=500, help="Replies to show.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    frames: Annotated[int, typer.Option(min=1, max=64, help="The most pictures of a video.")] = 8,
    tokenizer: Annotated[str | None, typer.Option(help="Colour this model's tokens instead of words.")] = None,
    max_lost: MaxLost = 0.01,
) -> None:
    """One HTML page: scores beside the published rows, curves over steps, and a sample of replies with their frames.

    Names of runs that end in a step, such as step_40, give a curve.

    Example: verl-p2r-eval report runs/p2r --media-root downloads --out p2r.html

    Example: verl-p2r-eval report --rollouts outputs/rl/rollouts --out rollouts.html
    """
    from data_tools.evaluate.cards import card_of, draw, replies_of
    from data_tools.evaluate.report import Report, score_plots, training_plots, write_report
    from data_tools.evaluate.rollouts import Rollouts

    with errors():
        if bool(runs) == bool(rollouts):
            raise ValueError("name outputs of `run`, or the rollouts of a training by --rollouts")
        if rollouts is not None:
            own = Rollouts.read(rollouts)
            page = Report(
                f"Rollouts of {own.folder.resolve().parent.name}",
                plots=training_plots(own),
                cards=draw(own.drawables(), count, seed),
            )
        else:
            read = _read(list(runs or ()), prepared)
            scored = _scored(read, protocol, max_lost, None)
            loaded = _tokenizer(tokenizer) if tokenizer else None
            drawn = draw((one for run in read for one in replies_of(run, protocol)), count, seed)
            page = Report(
                "Evaluation of " + ", ".join(run.name for run in read),
                scored,
                score_plots(scored),
                [card_of(record, loaded) for record in drawn],
                media_root,
                frames,
            )
        size = write_report(page, out)
    say(f"{out}: {len(page.cards):,} replies, {size / (1 << 20):.1f} MiB; open it in a browser")


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(name)
    if not loaded.is_fast:
        raise ValueError(f"{name}: has only a slow tokenizer, which does not say where its tokens begin: name another")
    return loaded


def _server(
    settings: GenerateSettings, model: str | None, base_url: list[str] | None, concurrency: int
) -> GenerateSettings:
    return replace(settings, model=model or "", base_urls=tuple(base_url or ()), concurrency=concurrency)


def _read(folders: list[Path], prepared: list[Path] | None) -> list[Run]:
    from data_tools.evaluate.results import read_run

    return [read_run(folder, prepared or ()) for folder in folders]


def _scored(runs: list[Run], protocol: str, max_lost: float, trained_on: list[Path] | None) -> list[dict[str, Any]]:
    from data_tools.evaluate.scoring import Overlap, score_run

    overlap = Overlap.of(trained_on) if trained_on else None
    return [score_run(run, protocol, max_lost=max_lost, overlap=overlap) for run in runs]


def _check(scored: list[dict[str, Any]], name: str) -> bool:
    from data_tools.evaluate.tables import check, title_of
    from verl_p2r.evaluation.references import references

    with errors():
        if name not in references():
            raise ValueError(f"no published row is called {name!r}: name one of {', '.join(references())}")
        reference = references()[name]
        if any(run["protocol"] != reference.protocol for run in scored):
            raise ValueError(f"{name} is comparable under protocol {reference.protocol} only: score by it")
    fine = True
    console.print()
    for run in scored:
        for benchmark, own, published, near in check(run, reference):
            fine = fine and near
            say(
                f"{run['name']}, {title_of(benchmark)}: {own:.1f}, published {published:.1f}: "
                f"{'within 2 points' if near else 'NOT within 2 points'}",
                "green" if near else "red",
            )
    return fine
