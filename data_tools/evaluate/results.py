# SPDX-License-Identifier: Apache-2.0
"""Reads the folder of a run as records to score: every prepared item, with its reply or why there is none."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.evaluate.prepare import STEP as PREPARE
from data_tools.evaluate.run import STEP as RUN
from data_tools.records.files import files_of
from data_tools.records.folders import described
from data_tools.records.history import MANIFEST
from data_tools.records.left_out import REJECTS
from verl_p2r.data.reading import read_values
from verl_p2r.data.record import Record
from verl_p2r.evaluation.items import NO_REPLY

PASSED_ON = ("problem_id", "problem_type", "options", "solution")
FROM_EXTRA = ("benchmark", "question_type", "video_id", "categories")


@dataclass(frozen=True)
class Preparation:
    """The prepared items of one benchmark, as a run has read them.

    Args:
        benchmark: name of the benchmark in scores.
        settings: settings in its manifest: hub, revision, protocol, complete, expected.
        missing: paths of the media that did not exist.
    """

    benchmark: str
    settings: Mapping[str, Any]
    missing: Sequence[str]


@dataclass(frozen=True)
class Run:
    """A run, ready to be scored.

    Args:
        folder: folder of the run.
        settings: how replies were generated, from its manifest.
        records: input of `verl_p2r.evaluation.score`, with `problem`, `path` and `data_type` in addition.
        preparations: one for each benchmark.
    """

    folder: Path
    settings: Mapping[str, Any]
    records: Sequence[dict[str, Any]]
    preparations: Sequence[Preparation]

    @property
    def name(self) -> str:
        """Name of the run in tables."""
        return self.folder.resolve().name

    @property
    def setting(self) -> str:
        """One line that must accompany every score: frames, pixels, prompt, sampling."""
        own, media = self.settings, self.settings["media"]
        sampling = {"temperature": own["temperature"], **own["extra_body"], "max_tokens": own["max_tokens"]}
        return (
            f"{own['model']}, at most {media['max_frames']} frames ({media['fps']:g} a second) of at most "
            f"{media['video_max_pixels']:,} pixels, prompt {own['prompt_template']}, "
            + ", ".join(f"{name} {value:g}" for name, value in sampling.items() if isinstance(value, int | float))
        )

    @property
    def prepared_for(self) -> list[str]:
        """The protocols that the items were prepared for."""
        return sorted({str(one.settings.get("protocol")) for one in self.preparations})


def read_run(folder: Path, prepared: Sequence[Path] = ()) -> Run:
    """Read the output of `verl-p2r-eval run`.

    Args:
        folder: folder of the run.
        prepared: folders of the prepared benchmarks, if they have moved since the run.

    Raises:
        ValueError: the folder is not the output of a run, or the prepared files are missing or have changed since.
    """
    manifest = _manifest(folder, RUN)
    files = _inputs(folder, manifest, prepared)
    replies = {record["problem_id"]: record for record in _values(files_of([folder]))}
    rejects = folder / REJECTS
    lost = {line["identity"]: line["reason"] for line in _values([rejects])} if rejects.is_file() else {}
    records = [_record(item, replies, lost) for item in _values(files)]
    preparations = [_preparation(place) for place in dict.fromkeys(file.parent for file in files)]
    return Run(folder, manifest["settings"], records, preparations)


def _record(item: dict[str, Any], replies: Mapping[str, Any], lost: Mapping[str, str]) -> dict[str, Any]:
    reply = replies.get(item["problem_id"])
    record = {name: item.get(name) for name in (*PASSED_ON, *FROM_EXTRA, "problem", "path", "data_type", "media")}
    if reply is None:
        why = lost.get(Record.parse(item).identity.hex(), NO_REPLY)
        return {**record, "response": None, "lost": why, "finish_reason": None}
    own = {name: reply.get(name) for name in ("finish_reason", "completion_tokens")}
    return {**record, "response": reply.get("output") or "", **own}


def _inputs(folder: Path, manifest: Mapping[str, Any], prepared: Sequence[Path]) -> list[Path]:
    """Find the prepared files that a run has read, among others if they have moved; check that they are the same."""
    wanted = {entry["sha256"]: entry["file"] for entry in manifest["inputs"]}
    files = files_of(prepared) if prepared else [Path(name) for name in wanted.values()]
    if gone := [file for file in files if not file.is_file()]:
        raise ValueError(
            f"{folder}: its items were read from {gone[0]}, which is not there: name their folder by --prepared"
        )
    found = {entry["sha256"]: file for file, entry in zip(files, described(files), strict=True)}
    if changed := sorted(set(wanted) - set(found)):
        raise ValueError(
            f"{folder}: {wanted[changed[0]]} has changed since the run: run again, which asks only what is new"
        )
    return [found[sha256] for sha256 in wanted]


def _preparation(folder: Path) -> Preparation:
    manifest = _manifest(folder, PREPARE)
    return Preparation(manifest["settings"]["benchmark"], manifest["settings"], manifest["missing_media"])


def _manifest(folder: Path, step: str) -> dict[str, Any]:
    file = folder / MANIFEST
    command = {RUN: "run", PREPARE: "prepare"}[step]
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}): name the output of `verl-p2r-eval {command}`") from error
    if not isinstance(manifest, dict) or manifest.get("step") != step:
        raise ValueError(f"{folder} is not the output of `verl-p2r-eval {command}`")
    return manifest


def _values(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        for raw in read_values(file):
            if not isinstance(raw.value, dict):
                raise ValueError(f"{raw.file}:{raw.line}: {raw.value}: run the command again")
            yield raw.value
