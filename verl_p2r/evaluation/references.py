# SPDX-License-Identifier: Apache-2.0
"""Published scores to compare with: the paper's rows and a few others."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import yaml

TOLERANCE = 2.0
"""Largest difference, in points, to a published row of the same model and setting that needs no explanation."""


@dataclass(frozen=True)
class Reference:
    """One published row.

    Args:
        key: short name of the row.
        name: the model, and who published the row.
        setting: frames, pixels and prompt, as far as known.
        protocol: the protocol that its numbers are comparable under.
        scores: benchmark → percent.
        average: published average over the seven benchmarks, in percent; None if there is none.
    """

    key: str
    name: str
    setting: str
    protocol: str
    scores: Mapping[str, float]
    average: float | None = None


@lru_cache(maxsize=1)
def references() -> Mapping[str, Reference]:
    """Return every published row by its short name.

    >>> references()["videop2r-pa-grpo"].scores["mmvu"]
    65.4
    """
    text = files("verl_p2r.evaluation").joinpath("references.yaml").read_text(encoding="utf-8")
    return {key: Reference(key=key, **row) for key, row in yaml.safe_load(text).items()}
