# SPDX-License-Identifier: Apache-2.0
"""Rows that are left out of a run: counted by reason, listed in a file, and remembered on disk for the next start."""

import hashlib
import json
import os
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verl_p2r.media.probe import TIMEOUT_VARIABLE

PACKAGE = Path(__file__).parents[1]  # a change anywhere in it may change what is left out
SHOWN = 5  # how many rejects an error lists
LIBRARIES = ("qwen-vl-utils", "transformers", "av")  # whose rules decide on sizes and lengths
VARIABLES = (TIMEOUT_VARIABLE, "MODEL_SEQ_LEN")  # of the environment, likewise


@dataclass(frozen=True)
class Reject:
    """A row that is left out.

    Args:
        position: where the row stood in what was screened, from 0.
        file, row: where a person finds it; rows count from 0.
        field: the field at fault.
        reason: a short name, the same for all rows of one kind.
        message: what is wrong, and what to do about it.
        medium: the path of the media file at fault, if it is one.
    """

    position: int
    file: str
    row: int
    field: str
    reason: str
    message: str
    medium: str | None = None

    def __str__(self) -> str:
        text = f"{self.file} row {self.row}: {self.message}"
        return text.encode("utf-8", "backslashreplace").decode()  # a path may hold what no terminal can print


@dataclass(frozen=True)
class Screening:
    """The outcome: how many rows were looked at, and those that are left out, in order."""

    total: int
    rejects: tuple[Reject, ...] = ()

    @property
    def kept(self) -> list[int]:
        """Positions of the rows that stay, in order.

        >>> Screening(3, (Reject(1, "rl.parquet", 1, "videos", "missing file", "no such file"),)).kept
        [0, 2]
        """
        out = {reject.position for reject in self.rejects}
        return [position for position in range(self.total) if position not in out]

    @property
    def reasons(self) -> str:
        """Counts by reason, the most frequent first, as one line."""
        counts = Counter(reject.reason for reject in self.rejects)
        return ", ".join(f"{reason} {count}" for reason, count in counts.most_common())


def admit(screening: Screening, *, max_share: float, setting: str, listing: Path | None) -> list[int]:
    """Say what was left out, and go on only if that is little enough.

    Args:
        screening: the outcome.
        max_share: the largest share of rejects, in [0, 1], to go on with.
        setting: the name of the setting that holds it, for messages.
        listing: a JSON-lines file to write with one reject a line; an old one is removed when there are none.

    Returns:
        Positions of the rows that stay, in order.

    Raises:
        ValueError: more than `max_share` are rejected, or all; counts by reason, and the first of them.
    """
    rejects = screening.rejects
    if listing is not None:
        if rejects:
            _write(listing, map(asdict, rejects))
        else:
            listing.unlink(missing_ok=True)
    if not rejects:
        return screening.kept
    where = f"; all of them: {listing}" if listing is not None else ""
    summary = f"{len(rejects)} of {screening.total} rows rejected ({screening.reasons}){where}"
    if len(rejects) > max_share * screening.total or len(rejects) == screening.total:
        more = f"\n  … and {len(rejects) - SHOWN} more" if len(rejects) > SHOWN else ""
        raise ValueError(
            f"{summary}\n  " + "\n  ".join(map(str, rejects[:SHOWN])) + f"{more}\n"
            f"That is more than {setting}={max_share:g}: repair the data, or raise it to go on without these rows"
        )
    print(f"{summary}. The first: {rejects[0]}")
    return screening.kept


def remembered(folder: Path | None, key: str, run: Callable[[], Screening]) -> Screening:
    """Take a screening from disk, or run it and put it there.

    A screening holds while the rejected media files are as they were: once one is repaired, all is screened again.
    Processes that start at once may all run it; each writes the whole file in one step.

    Args:
        folder: where screenings are kept; None to run it always.
        key: of the data and settings, see `key_of`.
        run: makes the screening.
    """
    if folder is None:
        return run()
    path = folder / f"{key}.jsonl"
    if path.is_file():
        try:
            head, *lines = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
            screening = Screening(head["rows"], tuple(Reject(**line) for line in lines))
            if len(lines) != head["rejects"]:
                raise ValueError(f"{len(lines)} of {head['rejects']} rejects")
            if all(_stat_of(medium) == stat for medium, stat in head["media"].items()):
                return screening
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            warnings.warn(f"{path} is damaged ({error}): the data are screened again", stacklevel=2)
    screening = run()
    media = {reject.medium: _stat_of(reject.medium) for reject in screening.rejects if reject.medium is not None}
    lines = [{"rows": screening.total, "rejects": len(screening.rejects), "media": media}]
    lines += map(asdict, screening.rejects)
    try:
        _write(path, lines)
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error}): the next start screens again", stacklevel=2)
    return screening


def key_of(files: Sequence[str | Path], *settings: Any) -> str:
    """A key that changes when a file, a setting, this package's code or the version of a library behind it does.

    Args:
        files: the data files; their path, size and time of change count, not their content, and media not at all: one
            that is changed later is found when it is decoded.
        settings: anything else the outcome depends on, with a `repr` that tells it.
    """
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(PACKAGE.rglob("*.py"))))
    versions = [version(library) for library in LIBRARIES]
    variables = [os.environ.get(variable) for variable in VARIABLES]
    stats = [(str(Path(file).absolute()), _stat_of(str(file))) for file in files]
    return hashlib.sha256(repr((code.hexdigest(), versions, variables, stats, settings)).encode()).hexdigest()[:32]


def _stat_of(path: str) -> list[int] | None:
    """Size and time of change of a file; None when it is missing."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # ValueError: NUL bytes, and characters that the file system cannot encode
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines in one step: another process sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, path)
