# SPDX-License-Identifier: Apache-2.0
"""How well the readers of `mismatch` read labelled thinking: the rule alone, and with a judge for the rest."""

import asyncio
from collections.abc import Sequence
from typing import Any

from data_tools.evaluate.mismatch import ThoughtReader
from data_tools.steps.asking import NobodyReplies
from data_tools.steps.generate_settings import GenerateSettings
from verl_p2r.chat.client import Unanswered
from verl_p2r.data.record import Record
from verl_p2r.evaluation.labelled import LabelledThinking, reading_quality
from verl_p2r.evaluation.mismatch import stated_option

RULE, BOTH = "rule alone", "rule, then the judge"


def measure_readers(cases: Sequence[LabelledThinking], settings: GenerateSettings) -> dict[str, dict[str, float]]:
    """Read labelled thinking by the rule and, with a model, by the rule and then the judge.

    Args:
        cases: labelled thinking.
        settings: `mismatch.DEFAULTS`, with the judge's model and servers; without a model only the rule reads.

    Returns:
        Reader → figures of `reading_quality`.

    Raises:
        NobodyReplies: the judge does not answer.
        ValueError: a setting cannot be used.
    """
    found = {RULE: reading_quality(cases, [stated_option(case.think, case.options) for case in cases])}
    if settings.model:
        found[BOTH] = reading_quality(cases, asyncio.run(_read(cases, settings)))
    return found


async def _read(cases: Sequence[LabelledThinking], settings: GenerateSettings) -> list[str | None]:
    reader = ThoughtReader(settings)

    async def one(case: LabelledThinking) -> str | None:
        reply = await reader.ask(_record(case))
        return str(reply["letter"]) or None

    try:
        return list(await asyncio.gather(*map(one, cases)))
    except Unanswered as error:
        raise NobodyReplies(f"the judge gave no reply: {error}") from None
    finally:
        await reader.aclose()


def _record(case: LabelledThinking) -> Record:
    """Make a record whose response has this thinking; the reader sees neither its observation nor its answer."""
    raw: dict[str, Any] = {
        "problem_id": case.id,
        "problem": case.question,
        "problem_type": "multiple choice",
        "data_type": "video",
        "path": "none.mp4",
        "solution": "A",
        "options": list(case.options),
        "output": f"<observation>-</observation><think>{case.think}</think><answer>A</answer>",
    }
    return Record.parse(raw)
