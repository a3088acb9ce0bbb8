# SPDX-License-Identifier: Apache-2.0
"""Rows that are left out of a run: counted by reason, listed in a file, and cached on disk for the next start."""

import hashlib
import json
import os
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verl_p2r.media.probe import TIMEOUT_VARIABLE

PACKAGE = Path(__file__).parents[1]  # a change to any of its files may change what is left out
SHOWN = 5  # rejects listed in an error
LIBRARIES = ("qwen-vl-utils", "transformers", "av")  # their rules decide sizes and lengths
VARIABLES = (TIMEOUT_VARIABLE, "MODEL_SEQ_LEN")  # environment variables that do so too


@dataclass(frozen=True)
class RejectedRow:
    """A row that is left out.

    Args:
        position: position of the row among the screened rows, from 0.
        file: file of the row.
        row: number of the row in that file, from 0.
        field: the wrong field.
        reason: a short name, the same for all rows with this fault.
        message: what is wrong, and what to do about it.
        medium: path of the media file that causes the fault, if one does.
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
        return text.encode("utf-8", "backslashreplace").decode()  # paths may contain unprintable characters


@dataclass(frozen=True)
class Screening:
    """The outcome of a screening.

    Args:
        total: number of rows screened.
        rejects: the rejected rows, in order.
    """

    total: int
    rejects: tuple[RejectedRow, ...] = ()

    @property
    def kept(self) -> list[int]:
        """Positions of the rows that stay, in order.

        >>> Screening(3, (RejectedRow(1, "rl.parquet", 1, "videos", "missing file", "no such file"),)).kept
        [0, 2]
        """
        out = {reject.position for reject in self.rejects}
        return [position for position in range(self.total) if position not in out]

    @property
    def reasons(self) -> str:
        """Counts by reason, the most frequent first, as one line."""
        counts = Counter(reject.reason for reject in self.rejects)
        return ", ".join(f"{reason} {count}" for reason, count in counts.most_common())


def keep_or_raise(screening: Screening, *, max_share: float, setting: str, listing: Path | None) -> list[int]:
    """List the rejected rows, and raise if there are too many.

    Args:
        screening: the outcome of a screening.
        max_share: the largest share of rejected rows, in [0, 1], that is accepted.
        setting: name of the setting that holds this share, for messages.
        listing: JSON-lines file to write with one rejected row a line; an old one is removed if there are none.

    Returns:
        Positions of the rows that stay, in order.

    Raises:
        ValueError: more than `max_share` or all rows are rejected; the message counts them by reason and shows the
            first ones.
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


def load_or_screen(folder: Path | None, key: str, run: Callable[[], Screening]) -> Screening:
    """Load a screening from disk, or run and store it.

    A stored screening is valid while the rejected media files are unchanged. If one is repaired, all rows are screened
    again. Processes that start together may all run the screening; each writes the whole file atomically.

    Args:
        folder: folder of stored screenings; None to run it every time.
        key: key of the data and settings, see `key_of`.
        run: makes the screening.
    """
    if folder is None:
        return run()
    path = folder / f"{key}.jsonl"
    if path.is_file():
        try:
            head, *lines = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
            screening = Screening(head["rows"], tuple(RejectedRow(**line) for line in lines))
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
    """Return a key that changes with a file, a setting, this package's code or the version of a relevant library.

    Args:
        files: the data files. Their path, size and modification time count, not their content. Media do not count: a
            medium that is changed later is found when it is decoded.
        settings: everything else that the outcome depends on, with an informative `repr`.
    """
    code, versions = _code_and_versions()
    variables = [os.environ.get(variable) for variable in VARIABLES]
    stats = [(str(Path(file).absolute()), _stat_of(str(file))) for file in files]
    return hashlib.sha256(repr((code, versions, variables, stats, settings)).encode()).hexdigest()[:32]


@cache
def _code_and_versions() -> tuple[str, list[str]]:
    """Return a digest of this package's code, and the libraries' versions; neither changes within a process."""
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(PACKAGE.rglob("*.py"))))
    return code.hexdigest(), [version(library) for library in LIBRARIES]


def _stat_of(path: str) -> list[int] | None:
    """Return size and modification time of a file; None if it is missing."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # ValueError: no file can have this name
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines atomically: another process sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, path)
