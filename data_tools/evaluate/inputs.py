# SPDX-License-Identifier: Apache-2.0
"""Turns arguments of `verl-p2r-eval` into settings of a server, runs and scored runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_tools.evaluate.results import Run
    from data_tools.steps.generate_settings import GenerateSettings


def server_of(
    settings: GenerateSettings, model: str | None, base_url: list[str] | None, concurrency: int
) -> GenerateSettings:
    """Return settings with a model and its servers."""
    return replace(settings, model=model or "", base_urls=tuple(base_url or ()), concurrency=concurrency)


def read_runs(folders: list[Path], prepared: list[Path] | None) -> list[Run]:
    """Read runs; `prepared` names the folders of their items, if these have moved."""
    from data_tools.evaluate.results import read_run

    return [read_run(folder, prepared or ()) for folder in folders]


def score_runs(runs: list[Run], protocol: str, max_lost: float, trained_on: list[Path] | None) -> list[dict[str, Any]]:
    """Score runs, with their overlap with training data if any is named."""
    from data_tools.evaluate.scoring import Overlap, score_run

    overlap = Overlap.of(trained_on) if trained_on else None
    return [score_run(run, protocol, max_lost=max_lost, overlap=overlap) for run in runs]
