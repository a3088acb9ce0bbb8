# SPDX-License-Identifier: Apache-2.0
"""Step 3: does the observation suffice to deduce the answer? A record stays on the judge's Yes (arXiv 2511.11113, §3).

This is the judge of training, with the same prompt, parser and guards (`verl_p2r.judge`).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.records.left_out import Dropped
from data_tools.steps.asking import NobodyReplies, asking_step
from data_tools.steps.run import OnRecord, Outcome, StepReport
from verl_p2r.chat.client import Unanswered
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Record
from verl_p2r.judge import PROMPT_VERSION, JudgeRequest, ask, check_judge, get_judge
from verl_p2r.judge.combined import CombinedJudge
from verl_p2r.judge.facts import Fact
from verl_p2r.judge.openai_judge import OpenAIJudge
from verl_p2r.settings import JudgeGuards
from verl_p2r.template import parse_response


@dataclass(frozen=True)
class JudgeStepSettings:
    """Which judge is asked, and how.

    Args:
        name: `openai`, `visual`, `facts` (for records that list `facts`), `all`, `any`, `weighted`, or `module:Class`.
        kwargs: options of the judge, like `algorithm.p2r.judge.kwargs` in training.
        guards: rules that come before the judge, as in training; off by default, as in the paper.
        concurrency: records judged at once.
        health_check: ask two questions with known answers first, and refuse a judge that gets one wrong.
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
    def fingerprint(self) -> dict[str, Any]:
        """The settings that determine a verdict, with the text of each prompt that is read from a file."""
        judge = {"name": self.name, "kwargs": _determining(self.kwargs)}
        return {**judge, "guards": asdict(self.guards), "prompt_version": PROMPT_VERSION}


NOT_IN_FINGERPRINT = (
    "base_urls",
    "api_key_env",
    "concurrency",
    "connect_timeout_s",
    "timeout_s",
    "deadline_s",
    "use_proxy",
    "cache_size",
    "cache_file",
    "frame_cache",
    "frame_cache_gib",
    "media_kept",
)
"""Options of judges that do not change a verdict."""


def _determining(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a judge that determine a verdict; those of a combined judge's members likewise."""
    own = {name: value for name, value in kwargs.items() if name not in NOT_IN_FINGERPRINT}
    if file := own.get("template_file"):
        own["template"] = Path(file).expanduser().read_text("utf-8")
    if isinstance(members := own.get("members"), Mapping):
        own["members"] = {
            label: {**one, "kwargs": _determining(one.get("kwargs") or {})} if isinstance(one, Mapping) else one
            for label, one in members.items()
        }
    return own


class RecordJudge:
    """Asks a judge about records.

    Args:
        settings: which judge, and how.
        root: folder that the records' paths are relative to, for the judge `visual`; None: it is shown nothing.

    Raises:
        ValueError: there is no such judge, or it does not accept an option.
    """

    def __init__(self, settings: JudgeStepSettings, root: Path | None = None) -> None:
        self.settings, self.concurrency, self._root = settings, settings.concurrency, root
        kwargs = dict(settings.kwargs)
        if settings.name in ("openai", "visual"):
            kwargs.setdefault("concurrency", settings.concurrency)
            if kwargs.get("model") == "":
                raise ValueError("judge.kwargs.model is empty: give the name that the server has for the model")
        self.judge = get_judge(settings.name, "judge", **kwargs)
        self.fingerprint: Mapping[str, Any] = settings.fingerprint
        self._health: asyncio.Task[None] | None = None

    async def ask(self, record: Record) -> dict[str, Any]:
        """Return the verdict on a record's observation."""
        if self.settings.health_check:
            self._health = self._health or asyncio.create_task(self._check())  # once, for all waiting records
            await asyncio.shield(self._health)
        if self.settings.name == "facts" and not record.facts:
            raise RowError("facts", "no facts", "field facts is not set: list what the observation must state")
        verdict = await ask(self.judge, request_of(record, self._root), self.settings.guards)
        if verdict.value is None:
            raise Unanswered(verdict.reason, verdict.retries, verdict.status, verdict.useless)
        # Cached verdicts count as the judge's, because which of two equal requests comes first is chance.
        reason = verdict.reason.encode("utf-8", "replace").decode()  # a broken emoji does not invalidate a verdict
        return {"value": verdict.value, "reason": reason, "source": verdict.source.replace("cache", "judge")}

    async def check(self) -> None:
        """Ask the two questions with known answers."""
        if getattr(self.judge, "ask_anew", None) is None:
            raise NobodyReplies("the judge cannot be asked a question with a known answer")
        await self._check()

    async def _check(self) -> None:
        try:
            if isinstance(self.judge, OpenAIJudge | CombinedJudge):
                await self.judge.reach()
            await check_judge(self.judge, self.settings.name, "judge")
        except (RuntimeError, Unanswered) as error:
            raise NobodyReplies(str(error)) from None

    async def aclose(self) -> None:
        """Close the judge's connections, if it has any."""
        close = getattr(self.judge, "aclose", None)
        if close is not None:
            await close()


def request_of(record: Record, root: Path | None = None) -> JudgeRequest:
    """Return what the judge is told about a record.

    Args:
        record: the record.
        root: folder that its path is relative to; None leaves its medium out.

    Raises:
        RowError: the record has no observation.
    """
    observation = record.observation
    if observation is None and record.response is not None:
        observation = parse_response(record.response).observation
    if not observation:
        raise RowError("observation", "no observation", "field observation is not set: verify the responses first")
    return JudgeRequest(
        question=record.question,
        solution=record.solution,
        observation=observation,
        problem_type=record.problem_type,
        facts=Fact.parse_all(record.facts),
        row=f"{record.file}:{record.line}",
        media=() if root is None else (record.medium.element(root),),
    )


def judge(
    files: Sequence[Path],
    folder: Path,
    settings: JudgeStepSettings,
    *,
    max_reject_share: float = 0.01,
    root: Path | None = None,
    on_record: OnRecord = lambda kept: None,
) -> StepReport:
    """Keep the records whose observation suffices.

    Args:
        files: files of records with observations, see `records.files.files_of`.
        folder: output folder; verdicts are stored next to it, see `replies`.
        settings: which judge, and how.
        max_reject_share: the largest share of records, in [0, 1], that may be left without a verdict.
        root: folder that the records' paths are relative to. A record is then judged again when the size or the
            modification time of its medium changes, just as its response is generated again. None: verdicts depend
            only on the texts, which is all that a judge except `visual` reads.
        on_record: called once a record is settled.

    Raises:
        NobodyReplies: the judge's server is down or refuses everything; verdicts so far are stored.
        ValueError: a setting, the folder or the store of verdicts cannot be used.
    """

    def apply(record: Record, reply: dict[str, Any]) -> Outcome:
        judged = replace(record, select=reply["value"], extra={**record.extra, "verdict": reply})
        why = Dropped("observation", "observation does not suffice", reply["reason"]) if not reply["value"] else None
        return judged, why

    return asking_step(
        "judge",
        files,
        folder,
        RecordJudge(settings, root),
        apply,
        {"value": bool, "reason": str, "source": str},
        max_reject_share=max_reject_share,
        root=root,
        on_record=on_record,
    )
