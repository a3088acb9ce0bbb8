# SPDX-License-Identifier: Apache-2.0
"""The output folder of a step, which appears whole or not at all, and its manifest.

<folder>/part-00000.jsonl …   the records that go on; after an export train.parquet and val.parquet instead
<folder>/dropped.jsonl        see `left_out`, as for rejects.jsonl; neither exists when it would be empty
<folder>/rejects.jsonl
<folder>/manifest.json        inputs with their hashes, settings, counts in and out by reason, earlier steps
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.records.history import MANIFEST, history_of, manifest_steps
from data_tools.records.left_out import RejectLog
from data_tools.records.locks import locked
from data_tools.records.outputs import check_file, naming, place_of
from verl_p2r import __version__


def check_folder(folder: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse a folder that `whole_folder` must not replace.

    Raises:
        ValueError: `folder` is a symbolic link, contains something other than an earlier output, or contains an input.
    """
    place = place_of(folder)
    replaced = {place, _beside(place, "partial"), _beside(place, "old")} if place.name else {place}
    if read := [file for file in inputs if replaced & {*Path(os.path.realpath(file)).parents}]:
        raise ValueError(f"{folder} would be replaced, but {read[0]} is read from it: name another folder")
    if place.exists() and not _is_output(place):
        raise ValueError(f"{folder} holds something other than the output of a step: name another folder, or empty it")


def _is_output(place: Path) -> bool:
    """Return whether a place holds an earlier output or is an empty folder."""
    if not place.is_dir():
        return False
    try:
        return manifest_steps(place) is not None or not any(place.iterdir())
    except ValueError:  # a damaged manifest may be anybody's
        return False


@contextmanager
def whole_folder(folder: Path, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Provide a folder to write to, which takes the place of `folder` when the block ends without an error.

    Other readers see the old content or the whole new one, and for a moment neither. One process at a time writes a
    folder. After a kill, the next run restores what is needed and removes what is left.

    Args:
        folder: where the output belongs; an earlier output there is replaced.
        inputs: files that must survive the step.

    Raises:
        ValueError: see `check_folder`; or another process is writing this folder.
        OSError: something cannot be written; the old content stays.
    """
    check_folder(folder, inputs)
    place = place_of(folder)
    partial, old = _beside(place, "partial"), _beside(place, "old")
    with locked(folder):
        if old.exists() and not place.exists():
            os.rename(old, place)  # a step was killed between the two renames of `_replace`
        for rest in (partial, old):
            shutil.rmtree(rest, ignore_errors=True)
        partial.mkdir()
        try:
            with naming(folder):
                yield partial
            _replace(place, partial, old)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_files(folder: Path, name: str) -> Iterator[Path]:
    """Provide a folder to write files to, which move to `folder` when the block ends without an error.

    Args:
        folder: where the files belong; earlier ones of the same names are replaced, all others stay.
        name: name of the set of files. One process at a time writes a set.

    Raises:
        ValueError: another process is writing this set, or there is something other than a file where one belongs.
        OSError: a file cannot be written; earlier ones stay.
    """
    with locked(folder / name):
        partial = folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with naming(folder / name):
                yield partial
            written = sorted(partial.iterdir())
            for file in written:
                check_file(folder / file.name)
            for file in written:
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _beside(place: Path, state: str) -> Path:
    return place.with_name(f".{place.name}.{state}")


def _replace(place: Path, partial: Path, old: Path) -> None:
    if place.exists():
        os.rename(place, old)
    try:
        os.rename(partial, place)
    except OSError:
        if old.exists():
            os.rename(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def described(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Describe files for a manifest, with their hashes."""
    return [{"file": str(file), "bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files]


def write_manifest(
    folder: Path, step: str, inputs: Sequence[Path], *, read: int, written: int, rejects: RejectLog, **more: Any
) -> dict[str, Any]:
    """Write a step's manifest, the same for the same inputs and settings.

    Args:
        folder: output folder.
        step: name of the step.
        inputs: files that were read.
        read: number of records read.
        written: number of records written.
        rejects: log of the records that were rejected.
        **more: settings, and anything else to note.
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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
