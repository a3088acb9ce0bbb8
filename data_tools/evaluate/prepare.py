# SPDX-License-Identifier: Apache-2.0
"""Step 1 of an evaluation: turns the official files of a benchmark, as downloaded, into records and a manifest.

<out>/part-00000.jsonl   the records, items of one video one after the other
<out>/manifest.json      hashes and revision of what was read, counts and how they differ, names of missing media
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.evaluate.adapters import Adapter, Item, find_adapter
from data_tools.evaluate.adapters.base import Download
from data_tools.records.files import line_of, write_lines
from data_tools.records.folders import whole_folder, write_manifest
from data_tools.records.left_out import REJECTS, RejectLog
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Record
from verl_p2r.evaluation import Protocol

STEP = "prepare"


@dataclass(frozen=True)
class Prepared:
    """What `prepare` has done.

    Args:
        adapter: adapter of the benchmark.
        items: number of items.
        differences: one line for each published count that this download does not have.
        missing: paths of the media that do not exist, below the media root.
        revision: revision of the download; empty if it is not known.
    """

    adapter: Adapter
    items: int
    differences: tuple[str, ...]
    missing: tuple[str, ...]
    revision: str


def prepare(
    benchmark: str,
    source: Path,
    folder: Path,
    *,
    protocol: str = "video_r1",
    media_root: Path | None = None,
    revision: str = "",
    partial: bool = False,
) -> Prepared:
    """Turn the files of one benchmark into records.

    Args:
        benchmark: one of `adapters.ADAPTERS`.
        source: folder of the download; for `video_r1` a JSON file.
        folder: output folder; an earlier output is replaced.
        protocol: name of the protocol, which decides which part of a video is asked about, see `evaluation.Protocol`.
        media_root: folder that the records' paths are relative to: the source or one above it. By default the source,
            or the folder of a JSON file.
        revision: revision of the download; by default the one that the Hugging Face client noted with it.
        partial: accept counts that differ from the published ones. Scores of such a part say so.

    Returns:
        The report. Items whose video is missing stay among the records, because they count in the denominator.

    Raises:
        ValueError: a file is missing or unreadable, a count differs from the published one, or an item cannot be a
            record.
    """
    rules = Protocol.load(protocol)
    adapter = find_adapter(benchmark, source)
    download = Download(source)
    root = (media_root or (source if source.is_dir() else source.parent)).resolve()
    base = source.resolve() if source.is_dir() else root
    if not base.is_relative_to(root):
        raise ValueError(f"{source} is not below the media root {root}: name a folder above it")
    try:
        items = _by_video(adapter.items(download, rules))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{download.read[-1] if download.read else source}: an item lacks a field, or holds it in another form "
            f"({type(error).__name__}: {error}): download {adapter.hub} again, without changing its files"
        ) from error
    differences = _differences(adapter, items)
    if differences and not partial:
        raise ValueError(
            f"{adapter.title} at {source} is not what was published: {'; '.join(differences)}. Complete the download, "
            "or prepare what there is with --partial; its scores then say so"
        )
    prefix = base.relative_to(root).as_posix()
    records = [_record(item, adapter, rules, prefix) for item in items]
    missing = tuple(dict.fromkeys(record.path for record in records if not (root / record.path).is_file()))
    revision = revision or _noted_revision(source)
    with whole_folder(folder, download.read) as out, RejectLog(out / REJECTS) as rejects:
        write_lines(out, map(line_of, records))
        write_manifest(
            out,
            STEP,
            download.read,
            read=len(items),
            written=len(records),
            rejects=rejects,
            dropped={},
            failed=False,
            settings={
                "benchmark": adapter.name,
                "protocol": rules.name,
                "hub": adapter.hub,
                "revision": revision,
                "licence": adapter.licence,
                "expected": adapter.total or None,
                "complete": not differences,
            },
            counts=dict(sorted(Counter(item.question_type for item in items).items())),
            differences=list(differences),
            missing_media=list(missing),
        )
    return Prepared(adapter, len(items), differences, missing, revision)


def _by_video(items: Iterable[Item]) -> list[Item]:
    """Put items of one video one after the other, so that each video is decoded once."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.path, []).append(item)
    return [item for group in groups.values() for item in group]


def _differences(adapter: Adapter, items: list[Item]) -> tuple[str, ...]:
    """Describe how counts differ from the published ones; the type "" means all items together."""
    if not adapter.counts:
        return ()
    found: Mapping[str, int] = Counter(item.question_type for item in items)
    if "" in adapter.counts:
        found = {"": len(items)}
    return tuple(
        f"{name or 'items'}: {found.get(name, 0):,} instead of {adapter.counts.get(name, 0):,}"
        for name in (*adapter.counts, *(name for name in found if name not in adapter.counts))
        if found.get(name, 0) != adapter.counts.get(name, 0)
    )


def _record(item: Item, adapter: Adapter, protocol: Protocol, prefix: str) -> Record:
    path = item.path if prefix == "." else f"{prefix}/{item.path}"
    raw: dict[str, Any] = {
        "problem_id": f"{adapter.name}/{item.id}",
        "problem": item.question,
        "problem_type": item.problem_type,
        "data_type": "video",
        "path": path,
        "solution": item.solution,
        "options": list(item.options),
        "data_source": adapter.name,
        "media": dict(item.media) or None,
        "benchmark": adapter.name,
        "question_type": item.question_type,
        "video_id": item.video_id or path,
        "categories": dict(item.categories),
        "prepared_for": protocol.name,
    }
    try:
        return Record.parse(raw)
    except RowError as error:
        raise ValueError(f"{adapter.title} item {item.id}: {error}") from error


def _noted_revision(source: Path) -> str:
    """Return the commit that the Hugging Face client noted for a download with `--local-dir`; empty without a note."""
    notes = (source if source.is_dir() else source.parent) / ".cache" / "huggingface" / "download"
    for file in sorted(notes.rglob("*.metadata")):
        first = file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip()
        if first:
            return first
    return ""
