# SPDX-License-Identifier: Apache-2.0
"""Named protocols: everything about scoring that changes a number, in one small YAML file each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from verl_p2r.evaluation.readers import READERS, Reader

BENCHMARKS = ("vsi_bench", "video_mmmu", "mmvu", "vcr_bench", "mvbench", "tempcompass", "video_mme")
"""The paper's seven benchmarks, in the order of its tables."""

OVERALL = ("items", "types", "two_means", "eight_types")
"""How item scores become one figure, see `evaluation.summary`."""


def canonical(benchmark: str) -> str:
    """Return our name of a benchmark, however it is written; any other name as it is.

    >>> canonical("VSI-Bench"), canonical("Video-MME"), canonical("mine")
    ('vsi_bench', 'video_mme', 'mine')
    """
    return _NAMES.get(re.sub(r"[\W_]+", "", benchmark).lower(), benchmark)


_NAMES = {name.replace("_", ""): name for name in BENCHMARKS}


@dataclass(frozen=True)
class Protocol:
    """One way to score.

    Args:
        name: name of the protocol, which accompanies every score.
        description: one sentence about it.
        inclusive: form of mean relative accuracy, see `mean_relative_accuracy`.
        clips: whether MVBench's videos are cut to the item's start and end.
        last_frame_note: whether VideoMMMU's questions say what the video's last frame is, as its own prompt does.
        readers: benchmark → reader, with `default`.
        overall: benchmark → how its items become one figure, with `default`; one of `OVERALL`.
        left_out: question types that are not scored.
        notes: benchmark → how its reading differs from the one that the protocol is named after. Printed with scores.
    """

    name: str
    description: str
    inclusive: bool
    clips: bool
    last_frame_note: bool
    readers: Mapping[str, str]
    overall: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str) -> "Protocol":
        """Read a protocol.

        Args:
            name: one of the package's (`video_r1`, `official`), or the path of a YAML file of the same fields, of which
                only `notes` may be left out.

        Raises:
            ValueError: there is no such protocol, or one of its fields is missing, unknown or has an unknown value.

        >>> Protocol.load("official").inclusive
        True
        """
        return _load(str(name))

    def reader(self, benchmark: str) -> Reader:
        """Return the reader of a benchmark's replies."""
        return READERS[_pick(self.readers, benchmark)]

    def overall_of(self, benchmark: str) -> str:
        """Return how a benchmark's items become one figure."""
        return _pick(self.overall, benchmark)

    def note_on(self, benchmark: str) -> str:
        """Return how the reading of a benchmark differs from the one that the protocol is named after, or nothing."""
        return self.notes.get(canonical(benchmark), "")


def protocol_names() -> list[str]:
    """Return the names of the package's protocols."""
    own = files("verl_p2r.evaluation").joinpath("protocols")
    return sorted(file.name.removesuffix(".yaml") for file in own.iterdir() if file.name.endswith(".yaml"))


def _pick(table: Mapping[str, str], benchmark: str) -> str:
    return table.get(canonical(benchmark), table["default"])


@lru_cache(maxsize=16)
def _load(name: str) -> Protocol:
    own = files("verl_p2r.evaluation").joinpath(f"protocols/{name}.yaml")
    path = own if re.fullmatch(r"\w+", name) and own.is_file() else Path(name).expanduser()
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"protocol {name!r} cannot be read ({error}): name one of {', '.join(protocol_names())}, or a YAML file"
        ) from error
    known = {field.name for field in fields(Protocol)} - {"name"}
    if not isinstance(raw, dict) or set(raw) | {"notes"} != known:
        given = ", ".join(map(str, raw)) if isinstance(raw, dict) else "no mapping"
        raise ValueError(
            f"protocol {name!r} has the fields {given}: it must have {', '.join(sorted(known - {'notes'}))}, and may "
            "have notes"
        )
    for table_name, allowed in (("readers", tuple(READERS)), ("overall", OVERALL)):
        table = raw[table_name]
        if not isinstance(table, dict) or "default" not in table or not set(table.values()) <= set(allowed):
            raise ValueError(
                f"protocol {name!r}, field {table_name}: map benchmarks and `default` to one of {', '.join(allowed)}"
            )
    return Protocol(**{**raw, "name": Path(name).stem, "left_out": tuple(raw["left_out"])})
