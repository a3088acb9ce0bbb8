# SPDX-License-Identifier: Apache-2.0
"""Reads from manifests what earlier steps did to the records of some files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"

_LARGEST = 64 << 20  # the largest manifest, in bytes
_MOST = 2**63  # upper bound of a count


def history_of(inputs: Sequence[Path]) -> list[Mapping[str, Any]]:
    """Return the steps that produced some files, the first one first.

    Args:
        inputs: the files.

    Returns:
        For each step its name, the numbers of records read and written, and of those rejected and dropped by reason.

    Raises:
        ValueError: a manifest is damaged.
    """
    steps: list[Mapping[str, Any]] = []
    for folder in dict.fromkeys(file.parent for file in inputs):
        steps += [step for step in manifest_steps(folder) or () if step not in steps]
    return steps


def manifest_steps(folder: Path) -> list[Mapping[str, Any]] | None:
    """Return the steps in a folder's manifest, that of the folder last; None without a manifest of ours.

    Edge rules [ours]:
        A JSON object without `history` is another program's manifest. Any other content is a damaged manifest.

    Raises:
        ValueError: the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
        manifest = json.loads(path.read_bytes())
        if not isinstance(manifest, dict):
            raise ValueError("it is not a JSON object")
        if "history" not in manifest:
            return None
        history = manifest["history"]
        if not isinstance(history, list):
            raise ValueError("its history is not a list")
        return [_step(step) for step in (*history, manifest)]
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not the manifest of a step ({error}): repair it, or move it away to go on without the counts of "
            "earlier steps"
        ) from None


def _step(value: Any) -> Mapping[str, Any]:
    """Return the part of a manifest that later steps repeat."""
    if not isinstance(value, dict):
        raise ValueError("a step in its history is not a JSON object")
    step = {key: value.get(key, {}) for key in ("step", "read", "written", "rejected", "dropped")}
    if not _is_text(step["step"]):
        raise ValueError("field step is not a text")
    for key in ("read", "written"):
        if not _is_count(step[key]):
            raise ValueError(f"field {key} is not a count")
    for key in ("rejected", "dropped"):
        counts = step[key]
        if not isinstance(counts, dict) or not all(_is_text(r) and _is_count(n) for r, n in counts.items()):
            raise ValueError(f"field {key} is not a mapping of reasons to counts")
    return step


def _is_text(value: Any) -> bool:
    """Return whether a value is text that can be written as UTF-8."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST
