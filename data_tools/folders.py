# SPDX-License-Identifier: Apache-2.0
"""A step's output: a folder that appears whole or not at all, with a manifest of how it came about.

<folder>/manifest.json       inputs with their hashes, settings, counts in and out by reason, earlier steps
<folder>/rejects.jsonl       the records that are left out, if there are any
<folder>/part-00000.jsonl …  records, or the parquet files of an export
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.records import Record
from data_tools.rejects import RejectLog
from verl_p2r import __version__

MANIFEST = "manifest.json"
SHARD = 50_000  # records in a file


def check_folder(folder: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse a folder that `whole_folder` could not give.

    Raises:
        ValueError: there is something in `folder` that is no earlier output, or an input.
    """
    folder = folder.absolute()
    if read := [file for file in inputs if folder.resolve() in file.resolve().parents]:
        raise ValueError(f"{folder} would be replaced, but {read[0]} is read from it: name another folder")
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something else than the output of a step: name another folder, or empty it")


@contextmanager
def whole_folder(folder: Path, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Give a folder to write to that takes the place of `folder` when all has gone well.

    Another process sees the old content or the whole new one, and for a moment between them none. What a step that was
    killed has left is put right by the next.

    Args:
        folder: where the output belongs; an earlier output there is replaced.
        inputs: files that must outlast the step.

    Raises:
        ValueError: see `check_folder`.
    """
    check_folder(folder, inputs)
    folder = folder.absolute()
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    if old.exists() and not folder.exists():
        os.rename(old, folder)  # a step was killed between the two renames below
    for rest in (partial, old):
        shutil.rmtree(rest, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            os.rename(folder, old)
        os.rename(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_records(folder: Path, records: Iterable[Record]) -> int:
    """Write records as JSON lines, `SHARD` a file; gives their number."""
    total = 0
    file = None
    try:
        for record in records:
            if total % SHARD == 0:
                if file is not None:
                    file.close()
                file = (folder / f"part-{total // SHARD:05d}.jsonl").open("w", encoding="utf-8")
            assert file is not None
            file.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
            total += 1
    finally:
        if file is not None:
            file.close()
    return total


def described(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Files as a manifest names them, with their hashes."""
    return [{"file": str(file), "bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files]


def write_manifest(
    folder: Path, step: str, inputs: Sequence[Path], *, read: int, written: int, rejects: RejectLog, **more: Any
) -> dict[str, Any]:
    """Write a step's manifest, the same for the same inputs and settings.

    Args:
        folder: of the output.
        step: the step's name.
        inputs: the files that were read.
        read, written: numbers of records.
        rejects: what was left out.
        **more: settings and anything else to keep.
    """
    manifest = {
        "step": step,
        "version": __version__,
        "read": read,
        "written": written,
        "rejected": dict(rejects.reasons.most_common()),
        **more,
        "inputs": described(inputs),
        "outputs": sorted(path.name for path in folder.iterdir()),
        "history": history_of(inputs),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def history_of(inputs: Sequence[Path]) -> list[Mapping[str, Any]]:
    """The steps that the records of some files have come through, the first one first, with their counts."""
    steps: list[Mapping[str, Any]] = []
    for folder in dict.fromkeys(file.parent for file in inputs):
        if (folder / MANIFEST).is_file():
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if "history" not in manifest:
                continue  # another's
            own = {key: manifest.get(key, {}) for key in ("step", "read", "written", "rejected", "dropped")}
            steps += [step for step in (*manifest["history"], own) if step not in steps]
    return steps


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
