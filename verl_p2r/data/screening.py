# SPDX-License-Identifier: Apache-2.0
"""Screens rows before a run: rejects those that cannot work, with a reason, from metadata alone.

A row that fails during training loses its rollouts, and verl goes on silently. Here every medium is probed once. Its
frames, sizes and tokens follow by arithmetic, so no video is decoded.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from rich.progress import track

from verl_p2r.cpus import available_cpus
from verl_p2r.data.elements import kind_of, read_made_element
from verl_p2r.data.errors import RowError
from verl_p2r.data.rejects import RejectedRow, Screening
from verl_p2r.media.local_files import is_local_file
from verl_p2r.media.plan import (
    ImagePlan,
    MediaError,
    RulesError,
    VideoPlan,
    VisionSpec,
    plan_element,
    prompt_tokens,
)
from verl_p2r.media.probe import probe_element

R = TypeVar("R")

CHUNK = 1024  # rows in memory at a time; their media are probed while their texts are rendered


class RowMedium(NamedTuple):
    """A medium of a row.

    Args:
        field: field of the row that names it.
        element: its element in the messages.
    """

    field: str
    element: Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """One row as screening sees it.

    Args:
        text: everything that must fit, as the chat template renders it, with one placeholder for each medium.
        media: the media in the order of the placeholders.
    """

    text: str
    media: tuple[RowMedium, ...] = ()


@dataclass(frozen=True)
class Limit:
    """The longest a row may be.

    Args:
        tokens: the most tokens of text and media together.
        name: name of the setting that holds this limit, for messages.
        tokenizer: tokenizer of the model.
        spec: how the model's processor treats media; None for an unknown family, whose rows are not measured.
    """

    tokens: int
    name: str
    tokenizer: Any
    spec: VisionSpec | None


def media_in(messages: Iterable[Mapping[str, Any]], fields: Mapping[str, str]) -> tuple[RowMedium, ...]:
    """Return the media of a conversation, in the order of their placeholders.

    Args:
        messages: messages whose content is a list of elements where they hold media.
        fields: for `image` and `video`, the field of the row that names the media.

    Raises:
        RowError: an element cannot be read.
    """
    media: list[RowMedium] = []
    for message in messages:
        content = message["content"]
        for part in content if isinstance(content, list) else ():
            kind = kind_of(part)
            if kind is not None and kind in fields:
                media.append(RowMedium(fields[kind], read_made_element(part, kind, fields[kind])))
    return tuple(media)


def check_modalities(
    messages: Iterable[Mapping[str, Any]], field: str, known: Sequence[str] = ("text", "image", "video")
) -> None:
    """Refuse messages with parts that the model or the reader would ignore, such as audio.

    Args:
        messages: messages whose content is a text or a list of parts.
        field: field of the row that holds them, for the error.
        known: types of parts that are read.

    Raises:
        RowError: there are parts of other types.
    """
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    if others := {str(part["type"]) for part in parts}.difference(known):
        raise RowError(
            field,
            "wrong columns",
            f"field {field} holds {', '.join(sorted(others))} where only {', '.join(known)} can be read: drop the row",
        )


@contextmanager
def columns_at_fault(field: str) -> Iterator[None]:
    """Turn any error into a `RowError`, because chat templates and tokenizers may raise anything on wrong columns."""
    try:
        yield
    except RowError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise RowError(field, "wrong columns", f"its columns make no prompt ({what}): repair or drop it") from error


def screen(
    rows: Iterable[R | RowError],
    prepare: Callable[[int, R], Sample],
    place: Callable[[int], tuple[str, int]],
    limit: Limit,
    *,
    total: int | None = None,
) -> Screening:
    """Find the rows that cannot work.

    Args:
        rows: the rows; a `RowError` stands for a row that could not be read.
        prepare: makes a sample of a position and a row; raises a `RowError` for a row that cannot be used.
        place: returns the file of a position, and the row's number in it.
        limit: the longest a row may be.
        total: number of rows, for the progress bar.

    Edge rules [ours]:
        Each file, list of frames, or encoded file in a row is probed once, however many rows name it.
    """
    rejects: list[RejectedRow] = []
    numbered = enumerate(track(rows, description="Screening rows", total=total, transient=True))
    count = 0
    with ThreadPoolExecutor(max_workers=min(32, 4 * available_cpus())) as pool:
        probes = _Probes(pool)
        while chunk := list(islice(numbered, CHUNK)):
            samples = [(position, _sample(position, row, prepare, probes)) for position, row in chunk]
            for position, sample in samples:
                fault = sample if isinstance(sample, RowError) else _fault_of(sample, probes, limit)
                if fault is not None:
                    file, number = place(position)
                    why = fault.reason, fault.problem, fault.medium
                    rejects.append(RejectedRow(position, file, number, fault.field, *why))
            count += len(chunk)
    return Screening(count, tuple(rejects))


def _sample(
    position: int, row: R | RowError, prepare: Callable[[int, R], Sample], probes: "_Probes"
) -> Sample | RowError:
    """Prepare a row and start probing its media."""
    if isinstance(row, RowError):
        return row
    try:
        sample = prepare(position, row)
        probes.start(sample.media)
    except RowError as error:
        return error
    return sample


class _Probes:
    """Probes each distinct medium once, in a pool of threads."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.started: dict[Hashable, Future] = {}

    def start(self, media: Iterable[RowMedium]) -> None:
        for medium in media:
            key = _key_of(medium.element)
            if key is not None and key not in self.started:
                self.started[key] = self.pool.submit(probe_element, medium.element)

    def plan(self, medium: RowMedium, spec: VisionSpec | None) -> VideoPlan | ImagePlan | None:
        """Return frames and tokens of a medium; None for an unknown family.

        Raises:
            RowError: it cannot be used.
        """
        element, key = medium.element, _key_of(medium.element)
        try:
            if key is None:
                picture: Image.Image = element["image"]
                info: Any = (picture.height, picture.width)
            else:
                info = self.started[key].result()
            if spec is None:
                return None
            return plan_element(element, info, spec)
        except RulesError as error:
            raise RowError(
                medium.field, "sampling rules", f"field {medium.field}: {error}", medium=_path_of(element)
            ) from error
        except Exception as error:  # libraries may raise anything on odd rules; report it as this row's error
            path = _path_of(element)
            what = str(error) if isinstance(error, MediaError) else f"{type(error).__name__}: {error}"
            raise RowError(medium.field, _reason(path, what), f"field {medium.field}: {what}", medium=path) from error


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
    except UnicodeError as error:
        return RowError("prompt", "invalid UTF-8", f"field prompt: {error}: write it as UTF-8")
    except ValueError as error:
        return RowError("prompt", "placeholders", f"field prompt: {error}: write one placeholder per medium")
    except Exception as error:  # a tokenizer may raise anything on odd text
        return RowError("prompt", "wrong columns", f"field prompt: {type(error).__name__}: {error}: repair or drop it")
    if tokens <= limit.tokens:
        return None
    return RowError(
        "prompt",
        "over-long",
        f"its {tokens} tokens, {sum(plan.tokens for plan in known)} of them media, are more than {limit.name}="
        f"{limit.tokens}: raise it, take fewer or smaller frames, or drop the row",
    )


def _key_of(element: Mapping[str, Any]) -> Hashable:
    """Return the key of a medium to probe; None for a picture in memory, whose size is known."""
    kind = "video" if "video" in element else "image"
    source = element[kind]
    if isinstance(source, str):
        return kind, source
    if isinstance(source, bytes):
        return kind, blake2b(source, digest_size=16).digest()
    if isinstance(source, list):
        return kind, tuple(source), element.get("sample_fps")
    return None


def _path_of(element: Mapping[str, Any]) -> str | None:
    """Return the file of an element, of a list of frames the first missing one; None for data in memory."""
    source = element["video" if "video" in element else "image"]
    if isinstance(source, list):
        return next((path for path in source if not is_local_file(path)), source[0])
    return source if isinstance(source, str) else None


def _reason(path: str | None, problem: str) -> str:
    if path is not None and "://" not in path and not is_local_file(path):
        return "missing file"
    return "no video frames" if "no video frames" in problem else "unreadable file"
