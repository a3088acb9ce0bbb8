# SPDX-License-Identifier: Apache-2.0
"""Think–answer mismatch of a run: a rule reads the thinking first, and a judge without the answer reads the rest."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.evaluate.asker import ChatAsker, Request
from data_tools.records.files import files_of
from data_tools.records.left_out import Dropped
from data_tools.steps.asking import asking_step
from data_tools.steps.generate_settings import GenerateSettings
from data_tools.steps.run import OnRecord, Outcome, StepReport
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.reading import read_values
from verl_p2r.data.record import Record
from verl_p2r.evaluation.mismatch import (
    Conclusion,
    judge_prompt,
    mismatch_table,
    option_letter,
    read_judge,
    stated_option,
)
from verl_p2r.template import parse_response

STEP = "mismatch"
RULE = 2  # version of `stated_option`; raise it when it reads a text differently
SHAPE = {"letter": str, "source": str}
DEFAULTS = GenerateSettings(temperature=0.0, max_tokens=256)


class ThoughtReader:
    """Reads the option that a record's thinking concludes with; an `asking.Asker`.

    Args:
        settings: the judge's server; without a model only the rule reads.
    """

    def __init__(self, settings: GenerateSettings) -> None:
        self.fingerprint: Mapping[str, Any] = {"rule": RULE}
        self._judge = None
        if settings.model:
            template = PromptTemplate(judge_prompt("", ""), {})
            self.fingerprint = {"rule": RULE, **settings.fingerprint(template)}
            self._judge = ChatAsker(settings, self.fingerprint, self._request, "the mismatch judge")
        self.concurrency = settings.concurrency

    async def ask(self, record: Record) -> dict[str, Any]:
        """Return the letter, and who read it."""
        if record.problem_type != "multiple choice":
            raise Dropped("problem_type", "not multiple choice", "only options can be compared")
        think = _think(record)
        if not think:
            raise Dropped("output", "no thinking", "the reply has no complete <think> block")
        if letter := stated_option(think, record.options):
            return {"letter": letter, "source": "rule"}
        if self._judge is None:
            return {"letter": "", "source": ""}
        reply = await self._judge.ask(record)
        letter = read_judge(reply["output"], record.options) or ""
        return {"letter": letter, "source": "judge" if letter else ""}

    async def check(self) -> None:
        """Ask the judge for one word."""
        if self._judge is not None:
            await self._judge.check()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._judge is not None:
            await self._judge.aclose()

    async def _request(self, record: Record) -> Request:
        return Request(judge_prompt(record.question, _think(record)))


def mismatch(
    run: Path, folder: Path, settings: GenerateSettings, *, on_record: OnRecord = lambda kept: None
) -> tuple[StepReport, dict[str, Any]]:
    """Measure how often thinking and answer disagree in a run.

    Args:
        run: the output of `run`.
        folder: output folder, for the records with `extra.concluded` and for `mismatch.json`.
        settings: `DEFAULTS`, with the judge's model and servers; without a model only the rule reads.
        on_record: called once a record is settled.

    Returns:
        The report of the step; and benchmark → figures of `mismatch_table`, with `all` for all benchmarks together.

    Raises:
        NobodyReplies: the judge is down or refuses everything; replies so far are stored.
        ValueError: a setting or a folder cannot be used.
    """

    def apply(record: Record, reply: dict[str, Any]) -> Outcome:
        return replace(record, extra={**record.extra, "concluded": reply}), None

    files = files_of([run])
    reader = ThoughtReader(settings)
    report = asking_step(STEP, files, folder, reader, apply, SHAPE, max_reject_share=0.01, on_record=on_record)
    tables = tables_of(raw.value for file in sorted(folder.glob("part-*.jsonl")) for raw in read_values(file))
    (folder / "mismatch.json").write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")
    return report, tables


def tables_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of each benchmark, and under `all` those of all together."""
    groups: dict[str, list[Conclusion]] = defaultdict(list)
    for record in records:
        options = record["options"]
        conclusion = Conclusion(
            thought=record["concluded"]["letter"] or None,
            answer=option_letter(parse_response(record["output"]).answer or "", options),
            truth=option_letter(record["solution"], options) or "",
            source=record["concluded"]["source"],
        )
        for name in ("all", record["benchmark"]):
            groups[name].append(conclusion)
    return {name: mismatch_table(group) for name, group in groups.items()}


def _think(record: Record) -> str:
    return parse_response(record.output or "").think or ""
