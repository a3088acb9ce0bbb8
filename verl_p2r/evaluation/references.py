# SPDX-License-Identifier: Apache-2.0
"""Published scores to compare one's own with: the paper's rows and a few anchors."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import yaml

TOLERANCE = 2.0
"""Points by which a set-up may miss a published row of the same model and setting before it should be looked into."""


@dataclass(frozen=True)
class Reference:
    """One published row.

    Args:
        key: its short name.
        name: the model, and who published it.
        setting: frames, pixels and prompt, as far as they are known.
        protocol: the protocol that its numbers are comparable under.
        scores: benchmark → percent.
        average: over the seven benchmarks, in percent, as published; None where it is not.
    """

    key: str
    name: str
    setting: str
    protocol: str
    scores: Mapping[str, float]
    average: float | None = None


@lru_cache(maxsize=1)
def references() -> Mapping[str, Reference]:
    """Every published row by its short name.

    >>> references()["videop2r-pa-grpo"].scores["mmvu"]
    65.4
    """
    text = files("verl_p2r.evaluation").joinpath("references.yaml").read_text(encoding="utf-8")
    return {key: Reference(key=key, **row) for key, row in yaml.safe_load(text).items()}
