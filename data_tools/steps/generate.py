# SPDX-License-Identifier: Apache-2.0
"""Step 1: a strong vision-language model answers each record in the template (arXiv 2511.11113, §3)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.steps.asking import asking_step
from data_tools.steps.generate_ray import OfflineGenerator
from data_tools.steps.generate_server import Generator
from data_tools.steps.generate_settings import GenerateSettings
from data_tools.steps.run import OnRecord, Outcome, StepReport
from verl_p2r.data.record import Record


def generate(
    files: Sequence[Path],
    folder: Path,
    settings: GenerateSettings,
    root: Path,
    *,
    offline: bool = False,
    max_reject_share: float = 0.01,
    on_record: OnRecord = lambda kept: None,
) -> StepReport:
    """Generate a response to each record, which becomes the record's `output`.

    Args:
        files: files of records, see `records.files.files_of`.
        folder: output folder; replies are stored next to it, see `replies`.
        settings: how to generate.
        root: folder that the records' paths are relative to.
        offline: run the model on a Ray cluster instead of asking a server, see `generate_ray`.
        max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        on_record: called once a record is settled.

    Raises:
        NobodyReplies: the server is down or refuses everything; replies so far are stored.
        ValueError: a setting, the folder or the store of replies cannot be used.
    """

    def apply(record: Record, reply: dict[str, Any]) -> Outcome:
        extra = {name: value for name, value in record.extra.items() if name != "verdict"}  # on an earlier response
        extra["generated_by"] = settings.model
        fresh = replace(record, output=reply["output"], observation=None, process=None, reward=None, select=None)
        return replace(fresh, extra=extra), None

    return asking_step(
        "generate",
        files,
        folder,
        OfflineGenerator(settings, root) if offline else Generator(settings, root),
        apply,
        {"output": str},
        max_reject_share=max_reject_share,
        root=root,
        on_record=on_record,
    )
