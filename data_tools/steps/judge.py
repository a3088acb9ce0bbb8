# SPDX-License-Identifier: Apache-2.0
"""Step 3: does the observation suffice to deduce the answer? A record stays on the judge's Yes (arXiv 2511.11113, §3).

The judge is the one that training asks, with the same prompt, parser and guards (`verl_p2r.judge`).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.records.files import Record
from data_tools.steps.asking import NobodyReplies, asking_step
from data_tools.steps.generate import question_of
from data_tools.steps.run import Dropped, StepReport, Told
from verl_p2r.chat.client import Unanswered
from verl_p2r.data.rows import RowError
from verl_p2r.judge import PROMPT_VERSION, JudgeRequest, ask, check_judge, get_judge
from verl_p2r.judge.facts import Fact
from verl_p2r.judge.openai_judge import OpenAIJudge
from verl_p2r.settings import JudgeGuards
from verl_p2r.template import parse_response


@dataclass(frozen=True)
class JudgeSettings:
    """Who judges, and how.

    Args:
        name: `openai`, `facts` (records list `facts`), or `module:Class`.
        kwargs: of the judge, as `algorithm.p2r.judge.kwargs` in training.
        guards: rules before the judge, as in training; off by default, as in the paper.
        concurrency: records judged at once.
        health_check: ask two known questions first, and refuse a judge that cannot tell them apart.
    """

    name: str = "openai"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    guards: JudgeGuards = field(default_factory=JudgeGuards)
    concurrency: int = 64
    health_check: bool = True

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}: give a whole number above 0")

    @property
    def kept(self) -> dict[str, Any]:
        """The settings that determine a verdict, for the manifest and for the keys of verdicts."""
        kwargs = {name: value for name, value in self.kwargs.items() if name not in _OF_THE_WAY}
        return {"name": self.name, "kwargs": kwargs, "guards": asdict(self.guards), "prompt_version": PROMPT_VERSION}


_OF_THE_WAY = (
    "base_urls",
    "api_key_env",
    "concurrency",
    "connect_timeout_s",
    "timeout_s",
    "deadline_s",
    "use_proxy",
    "cache_size",
    "cache_file",
)


class Sufficiency:
    """Asks a judge about records.

    Args:
        settings: who, and how.

    Raises:
        ValueError: there is no such judge, or an option that it does not take.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings, self.concurrency = settings, settings.concurrency
        kwargs = dict(settings.kwargs)
        if settings.name == "openai":
            kwargs.setdefault("concurrency", settings.concurrency)
        try:
            self.judge = get_judge(settings.name, **kwargs)
        except ValueError as error:
            raise ValueError(str(error).replace("algorithm.p2r.judge", "judge")) from None
        file = kwargs.get("template_file")
        template = {"template": Path(file).expanduser().read_text("utf-8")} if file else {}
        self.fingerprint: Mapping[str, Any] = {**settings.kept, **template}
        self._health: asyncio.Task[None] | None = None

    async def ask(self, record: Record) -> dict[str, Any]:
        """The verdict on a record's observation."""
        if self.settings.health_check:
            self._health = self._health or asyncio.create_task(self._check())  # once, for all who wait
            await asyncio.shield(self._health)
        if self.settings.name == "facts" and not record.facts:
            raise RowError("facts", "no facts", "field facts is not set: list what the observation must state")
        verdict = await ask(self.judge, request_of(record), self.settings.guards)
        if verdict.value is None:
            raise Unanswered(verdict.reason, verdict.retries)
        # A copy of another's verdict is the judge's too: which of two equal requests comes first is chance.
        reason = verdict.reason.encode("utf-8", "replace").decode()  # half an emoji does not spoil a verdict
        return {"value": verdict.value, "reason": reason, "source": verdict.source.replace("cache", "judge")}

    async def check(self) -> None:
        if getattr(self.judge, "ask_anew", None) is None:
            raise NobodyReplies("the judge cannot be asked a known question")
        await self._check()

    async def _check(self) -> None:
        try:
            if isinstance(self.judge, OpenAIJudge):
                await self.judge.reach()
            await check_judge(self.judge, self.settings.name)
        except (RuntimeError, Unanswered) as error:
            raise NobodyReplies(str(error).replace("algorithm.p2r.judge.", "the setting judge.")) from None

    async def aclose(self) -> None:
        close = getattr(self.judge, "aclose", None)
        if close is not None:
            await close()


def request_of(record: Record) -> JudgeRequest:
    """What the judge may know of a record.

    Raises:
        RowError: the record has no observation.
    """
    observation = record.observation
    if observation is None and record.response is not None:
        observation = parse_response(record.response).observation
    if not observation:
        raise RowError("observation", "no observation", "field observation is not set: verify the responses first")
    return JudgeRequest(
        question=question_of(record),
        solution=record.solution,
        observation=observation,
        problem_type=record.problem_type,
        facts=Fact.parse_all(record.facts),
        row=f"{record.file}:{record.line}",
    )


def judge(
    files: Sequence[Path],
    folder: Path,
    settings: JudgeSettings,
    *,
    max_reject_share: float = 0.01,
    root: Path | None = None,
    told: Told = lambda kept: None,
) -> StepReport:
    """Keep the records of some files whose observation suffices.

    Args:
        files: of records with observations, see `records.files_of`.
        folder: for the output, see `steps`; verdicts are kept beside it, see `replies`.
        settings: who judges, and how.
        max_reject_share: the largest share of records, in [0, 1], that may be left without a verdict.
        root: the folder that the records' paths start from. A record is then judged again when the size or the
            modification time of its medium changes, as its response is generated again. None: verdicts depend on the
            texts alone, which is all that the judge reads.
        told: called with each record: whether it goes on.

    Raises:
        NobodyReplies: the judge is gone or refuses everything; what has come is kept.
        ValueError: a setting, the folder or the file of verdicts cannot be used.
    """

    def read(record: Record, reply: dict[str, Any]) -> tuple[Record, RowError | None]:
        judged = replace(record, select=reply["value"], extra={**record.extra, "verdict": reply})
        why = Dropped("observation", "observation does not suffice", reply["reason"]) if not reply["value"] else None
        return judged, why

    return asking_step(
        "judge",
        files,
        folder,
        Sufficiency(settings),
        read,
        {"value": bool, "reason": str, "source": str},
        max_reject_share=max_reject_share,
        root=root,
        told=told,
    )
