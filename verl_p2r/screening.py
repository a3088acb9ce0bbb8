# SPDX-License-Identifier: Apache-2.0
"""Screening rows before a run: what cannot work is left out with a reason, told from metadata alone.

A row that fails in the middle of training costs its rollouts, and verl goes on without a word. Here every medium is
probed once; its frames, sizes and tokens follow by arithmetic, and no video is decoded.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from rich.progress import track

from verl_p2r.decode import local_path
from verl_p2r.media import (
    ImagePlan,
    MediaError,
    VideoInfo,
    VideoPlan,
    VisionSpec,
    plan_image,
    plan_video,
    prompt_tokens,
)
from verl_p2r.probe import probe_image, probe_video
from verl_p2r.rejects import Reject, Screening
from verl_p2r.rows import RowError

R = TypeVar("R")

CHUNK = 1024  # rows held at a time: the media of a chunk are probed while its texts are rendered


class Medium(NamedTuple):
    """A medium of a row: the row's field that names it, and the message element made of it."""

    field: str
    element: Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """One row as screening sees it.

    Args:
        text: what the chat template makes of the whole row that must fit, one placeholder for each medium.
        media: the media in the order of the text's placeholders.
    """

    text: str
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True)
class Limit:
    """How long a row may be.

    Args:
        tokens: the most tokens of text and media together.
        name: the setting that says so, for messages.
        tokenizer: of the model.
        spec: what the model's processor does with media; None for an unknown family, whose rows are not measured.
    """

    tokens: int
    name: str
    tokenizer: Any
    spec: VisionSpec | None


def media_in(messages: Iterable[Mapping[str, Any]], fields: Mapping[str, str]) -> tuple[Medium, ...]:
    """The media of a conversation, in the order of their placeholders.

    Args:
        messages: with a list of elements as content where they hold media.
        fields: for each kind of medium, `image` and `video`, the row's field that names it.

    Raises:
        RowError: an element without a path.
    """
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    media = tuple(Medium(fields[part["type"]], part) for part in parts if part["type"] in fields)
    for field, part in media:
        if not part.keys() & {part["type"], f"{part['type']}_url"}:
            raise RowError(field, "no media", f"field {field} holds {part}, without a path in {part['type']!r}")
    return media


@contextmanager
def columns_at_fault(field: str) -> Iterator[None]:
    """Whatever a row makes the chat template do is this row's fault alone: turn any error into a `RowError`."""
    try:
        yield
    except RowError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise RowError(field, "wrong columns", f"its columns make no prompt ({what}): repair or drop it") from error


def screen(
    rows: Iterable[R],
    prepare: Callable[[int, R], Sample],
    place: Callable[[int], tuple[str, int]],
    limit: Limit,
    *,
    total: int | None = None,
) -> Screening:
    """Find the rows that cannot work, each on its own account.

    Args:
        rows: the rows.
        prepare: position and row → what the row amounts to. A `RowError` rejects the row.
        place: position → its file and its row there.
        limit: how long a row may be.
        total: how many rows there are, for the progress bar.

    Edge rules [ours]:
        Media that are no local files (URLs, lists of frames) are not looked at, and their rows not measured.
    """
    rejects: list[Reject] = []
    numbered = enumerate(track(rows, description="Screening rows", total=total, transient=True))
    count = 0
    with ThreadPoolExecutor(max_workers=min(32, 4 * (os.cpu_count() or 1))) as pool:
        probes = _Probes(pool)
        while chunk := list(islice(numbered, CHUNK)):
            found: list[tuple[int, Sample | RowError]] = []
            for position, row in chunk:
                try:
                    sample = prepare(position, row)
                    probes.start(sample.media)
                    found.append((position, sample))
                except RowError as error:
                    found.append((position, error))
            for position, outcome in found:
                fault = outcome if isinstance(outcome, RowError) else _fault_of(outcome, probes, limit)
                if fault is not None:
                    file, number = place(position)
                    rejects.append(
                        Reject(position, file, number, fault.field, fault.reason, fault.problem, fault.medium)
                    )
            count += len(chunk)
    return Screening(count, tuple(rejects))


class _Probes:
    """Each distinct local file is probed once, in a pool of threads."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.started: dict[tuple[str, str], Future] = {}

    def start(self, media: Iterable[Medium]) -> None:
        for medium in media:
            file = _local_file(medium.element)
            if file is not None and file not in self.started:
                self.started[file] = self.pool.submit(_probe, *file)

    def plan(self, medium: Medium, spec: VisionSpec | None) -> VideoPlan | ImagePlan | None:
        """What becomes of a medium; None when that cannot be told.

        Raises:
            RowError: it cannot be used.
        """
        file = _local_file(medium.element)
        image = medium.element.get("image")
        info: Any = (image.height, image.width) if isinstance(image, Image.Image) else None
        try:
            if file is not None:
                info = self.started[file].result()
            if info is None or spec is None:
                return None
            return (plan_video if "video" in medium.element else plan_image)(medium.element, info, spec)
        except MediaError as error:
            path = file[1] if file is not None else None
            reason = _reason(path, error) if info is None else "sampling rules"
            raise RowError(medium.field, reason, f"field {medium.field}: {error}", medium=path) from error


def _probe(kind: str, path: str) -> VideoInfo | tuple[int, int]:
    try:
        return probe_video(path) if kind == "video" else probe_image(path)
    except MediaError:
        raise
    except Exception as error:  # whatever a damaged file makes its library do, it is this file's fault alone
        raise MediaError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _fault_of(sample: Sample, probes: _Probes, limit: Limit) -> RowError | None:
    try:
        plans = [probes.plan(medium, limit.spec) for medium in sample.media]
    except RowError as error:
        return error
    known = [plan for plan in plans if plan is not None]
    if limit.spec is None or len(known) < len(plans):
        return None
    try:
        tokens = prompt_tokens(sample.text, known, limit.tokenizer, limit.spec)
    except ValueError as error:
        return RowError("prompt", "placeholders", f"field prompt: {error}: write one placeholder per medium")
    if tokens <= limit.tokens:
        return None
    return RowError(
        "prompt",
        "over-long",
        f"its {tokens} tokens, {sum(plan.tokens for plan in known)} of them media, are more than {limit.name}="
        f"{limit.tokens}: raise it, take fewer or smaller frames, or drop the row",
    )


def _local_file(element: Mapping[str, Any]) -> tuple[str, str] | None:
    """Kind and path of an element's file, None when it is in memory or behind a URL."""
    kind = "video" if "video" in element else "image"
    source = element.get(kind)
    if not isinstance(source, str) or "://" in source.removeprefix("file://") or source.startswith("data:"):
        return None
    return kind, local_path(source)


def _reason(path: str | None, error: MediaError) -> str:
    if path is not None and not Path(path).is_file():
        return "missing file"
    return "no video frames" if "no video frames" in str(error) else "unreadable file"
