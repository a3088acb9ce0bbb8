# SPDX-License-Identifier: Apache-2.0
"""Tokens of a launch's rows: what its settings allow, and what its data need if they are local."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from omegaconf import open_dict

from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.screening import Sample, media_in
from verl_p2r.data.settings import DataSettings
from verl_p2r.media.plan import MediaError, VisionSpec
from verl_p2r.planner import SHAPES, Lengths, Line, count, text_estimate, worst_media
from verl_p2r.planner.tokens import AROUND, CHARACTERS
from verl_p2r.plugin.plan.launches import Launch
from verl_p2r.settings import LengthBand, P2RSettings

RESPONSE = (LengthBand(128, 320), LengthBand(320, 512))  # the paper's, which its SFT rows follow as well
TAGS = 15  # tokens of a response outside its two segments: tags and the answer


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    Args:
        gpu: one of `GPUS`.
        model: a model of the same shape, if the config's path does not exist yet.
        rows: rows of the data to count, 0 for none.
        response: usual tokens of a response; None for the middle of the length bands.
    """

    gpu: str = "A100"
    model: str | None = None
    rows: int = 256
    response: float | None = None


def lengths_of(launch: Launch, spec: VisionSpec, options: Options) -> tuple[Lengths, list[Line]]:
    """Estimate tokens from the settings; the usual row is assumed to use all frames.

    Args:
        launch: the launch.
        spec: spec of the model's processor.
        options: from the command line.

    Returns:
        The lengths, and lines that explain them.
    """
    config, settings = launch.config, DataSettings.from_mapping(launch.config.data.get("p2r") or {})
    media, grid = worst_media(settings.media.train, spec, SHAPES)
    worst = worst_media(settings.media.train, spec)[0]
    text = text_estimate(PromptTemplate.load(settings.prompt_template))
    usual, longest = _response(launch, options)
    if launch.trains_rl:
        limits = config.data.max_prompt_length, config.data.max_response_length
    else:
        limits = config.data.max_length - int(usual), int(usual)
    frames = f"{settings.media.train.max_frames} frames of at most {settings.media.train.video_max_pixels:,} pixels"
    source = "--response-tokens" if options.response else "middle of the length bands"
    lines = [
        Line("media, usually", media, "tokens", frames),
        Line("media, at most", worst, "tokens", "the same of small files, which are enlarged"),
        Line("text, about", text, "tokens", f"characters of the prompt template / {CHARACTERS} + {AROUND} around it"),
        Line("prompt, usually", text + media, "tokens", "both: of a video long enough for all frames"),
        Line("response, usually", usual, "tokens", source),
        Line("row, at most", sum(limits), "tokens", "the config's limits"),
    ]
    if launch.trains_rl:
        validation, frames = worst_media(settings.media.val, spec)[0], f"{settings.media.val.max_frames} frames"
        lines.insert(2, Line("media in validation, at most", validation, "tokens", frames))
        worst = max(worst, validation)
    return Lengths(text, media, usual, grid, worst, *limits, longest), lines


def _response(launch: Launch, options: Options) -> tuple[float, float]:
    """Usual tokens of a response, and of the longest response in a batch."""
    if not launch.trains_rl:
        usual = options.response or sum((b.minimum + b.maximum) / 2 for b in RESPONSE) + TAGS
        return min(usual, launch.config.data.max_length), usual
    settings, limit = P2RSettings.from_mapping(launch.config.algorithm.p2r), launch.config.data.max_response_length
    bands = [p.length for p in (settings.perception, settings.reasoning)]
    usual = options.response or sum((band.minimum + band.maximum) / 2 for band in bands) + TAGS
    most = max(usual, sum(band.maximum for band in bands) + TAGS)
    return min(usual, limit), min(most, limit)


def real_rows(launch: Launch, spec: VisionSpec, processor: Any, rows: int, faults: list[str]) -> list[tuple[int, int]]:
    """Count tokens and media tokens in a sample of the training rows.

    Args:
        launch: the launch.
        spec: spec of the model's processor.
        processor: processor of the model.
        rows: number of rows.
        faults: an error in the data is added here.

    Returns:
        A pair for each row; none when the files are not local.
    """
    files = listed(launch.config.data.train_files)
    if not rows or not all(Path(file).is_file() for file in files):
        return []
    try:
        return [count(sample, spec, processor.tokenizer) for sample in samples(launch, files, processor, rows)]
    except (ValueError, MediaError) as error:
        faults.append(f"data: {error}")
        return []


def samples(launch: Launch, files: list[str], processor: Any, rows: int) -> Iterator[Sample]:
    """Prepare training rows as for screening, without those that cannot be used.

    Args:
        launch: the launch.
        files: its training files.
        processor: processor of the model.
        rows: most rows to take, -1 for all.

    Raises:
        ValueError: too many rows cannot be used.
    """
    from verl.trainer.ppo.utils import create_rl_dataset
    from verl.trainer.sft_trainer import create_sft_dataset

    data = launch.config.data.copy()
    with open_dict(data):
        data.p2r.screen_cache = data.p2r.rejects_dir = None
    if launch.trains_rl:
        dataset = create_rl_dataset(files, data, processor.tokenizer, processor, max_samples=rows)
        for columns in dataset.dataframe:
            messages = dataset._build_messages(columns, dataset.prompt_key)
            fields = {"image": dataset.image_key, "video": dataset.video_key}
            yield Sample(dataset._text(messages), media_in(messages, fields))
    else:
        dataset = create_sft_dataset(files, data, processor.tokenizer, processor, max_samples=rows)
        for item in range(len(dataset)):
            yield dataset._sample(dataset._columns(item))


def counted(
    launch: Launch, lengths: Lengths, lines: list[Line], rows: list[tuple[int, int]]
) -> tuple[Lengths, list[Line]]:
    """Replace estimates by counted rows.

    Args:
        launch: the launch.
        lengths: the estimates.
        lines: that explain them.
        rows: tokens and media tokens of each row.
    """
    whole, media = [row[0] for row in rows], [row[1] for row in rows]
    name = "prompt" if launch.trains_rl else "row"
    p95 = quantiles(whole, n=20, method="inclusive")[-1] if len(whole) > 1 else whole[0]
    how = f"counted in {len(rows)} rows of {launch.config.data.train_files}"
    real = [
        Line(f"{name}, median", median(whole), "tokens", how),
        Line(f"{name}, 95 %", p95, "tokens", how),
        Line(f"{name}, most", max(whole), "tokens", how),
        Line("media, median", median(media), "tokens", how),
    ]
    grid = lengths.grid * median(media) / lengths.media if lengths.media else 0
    lengths = replace(lengths, text=median(whole) - median(media), media=median(media), grid=grid)
    gone = {"media, usually", "text, about", "prompt, usually"}
    if not launch.trains_rl:  # SFT rows include their responses
        lengths, gone = replace(lengths, response=0), gone | {"response, usually"}
    return lengths, [*(line for line in lines if line.name not in gone), *real]


def listed(files: Any) -> list[str]:
    """Turn verl's `data.train_files`, one path or several, into a list.

    Args:
        files: a path or a sequence of paths.
    """
    return [files] if isinstance(files, str) else list(files)
