# SPDX-License-Identifier: Apache-2.0
"""Imports the VideoP2R release: finds its gzip parts, exports them, and compares the counts with the published table.

The published table includes records whose ground truth no answer can match. The import rejects these, as every step
does, and counts them for the comparison. Like all rejects they count against `max_reject_share`.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from data_tools.records.locks import locked
from data_tools.steps.run import OnBytes
from data_tools.steps.to_parquet import ExportSettings, Kind, Report, to_parquet

_PART = re.compile(r"VideoP2R-\w+_(?P<kind>sft|rl)\.part(?P<number>\d+)of(?P<count>\d+)\.json\.gz")

PUBLISHED_SFT: Mapping[tuple[str, str], int] = {
    ("image", "multiple choice"): 47_091,
    ("image", "numerical"): 18_476,
    ("image", "OCR"): 4_014,
    ("image", "free-form"): 2_501,
    ("image", "regression"): 693,
    ("video", "multiple choice"): 86_910,
    ("video", "numerical"): 1_371,
    ("video", "free-form"): 1_006,
}
"""Records of the SFT file by modality and problem type (arXiv 2511.11113)."""
PUBLISHED_SUMS: Mapping[Kind, int] = {"sft": 162_062, "rl": 263_055}
"""Records of each file; of the RL file nothing more is published."""


def find_parts(folder: Path) -> dict[Kind, list[Path]]:
    """Find the files of the release.

    Args:
        folder: folder of the files, or the folder that holds them in `data`.

    Returns:
        For each kind that is there, its parts in order.

    Raises:
        ValueError: there are none, or a part is missing.
    """
    found: dict[Kind, list[Path]] = {}
    kinds: tuple[Kind, ...] = ("sft", "rl")
    for kind in kinds:
        for place in (folder / "data", folder):
            matches = [(match, path) for path in sorted(place.glob("*")) if (match := _PART.fullmatch(path.name))]
            parts = {int(match["number"]): path for match, path in matches if match["kind"] == kind}
            if not parts:
                continue
            count = max(int(match["count"]) for match, _ in matches if match["kind"] == kind)
            missing = [str(number) for number in range(1, count + 1) if number not in parts]
            if missing:
                raise ValueError(
                    f"{place}: of the {kind} file, part {', '.join(missing)} of {count} is missing: fetch it"
                )
            found[kind] = [parts[number] for number in sorted(parts)]
            break
    if not found:
        raise ValueError(f"{folder}: holds no VideoP2R-*_sft.part1of2.json.gz or the like: fetch the release's data/")
    return found


def import_release(
    folder: Path,
    out: Path,
    settings: ExportSettings | None = None,
    *,
    on_bytes: OnBytes = lambda count: None,
) -> dict[Kind, Report]:
    """Export the SFT and RL files of the release to `out/sft` and `out/rl`, as far as they are there.

    Args:
        folder: folder of the downloaded release.
        out: output folder.
        settings: how to export.
        on_bytes: called as the files are read.

    Raises:
        ValueError: the files or the settings cannot be used.
    """
    parts = find_parts(folder)
    with locked(out):
        return {kind: to_parquet(files, out / kind, kind, settings, on_bytes=on_bytes) for kind, files in parts.items()}


def differences(
    kind: Kind, counts: Mapping[tuple[str, str], int], unusable: Mapping[tuple[str, str], int] | None = None
) -> list[str]:
    """Describe how counts differ from the published ones, a line for each difference.

    Args:
        kind: `sft` or `rl`.
        counts: records by modality and problem type.
        unusable: records rejected because no answer can match their ground truth, likewise. They were published, so
            they count too.

    >>> differences("sft", {**PUBLISHED_SFT, ("video", "free-form"): 1_000})
    ['video, free-form: 1,000 records, published 1,006 (-6)', 'sum: 162,056 records, published 162,062 (-6)']
    """
    counts = Counter(counts) + Counter(unusable or {})
    pairs = [("sum", sum(counts.values()), PUBLISHED_SUMS[kind])]
    if kind == "sft":
        cells = list(PUBLISHED_SFT) + [cell for cell in counts if cell not in PUBLISHED_SFT]
        pairs = [(", ".join(cell), counts.get(cell, 0), PUBLISHED_SFT.get(cell, 0)) for cell in cells] + pairs
    return [
        f"{name}: {ours:,} records, published {theirs:,} ({ours - theirs:+,})"
        for name, ours, theirs in pairs
        if ours != theirs
    ]
