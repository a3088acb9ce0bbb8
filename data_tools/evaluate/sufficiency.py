# SPDX-License-Identifier: Apache-2.0
"""Perception sufficiency of a run: a text-only model answers from the question and the model's observation.

Three passes over the same items, the last two as controls that the paper does not have [ours]:

    observation   question and observation
    question      the question alone, for what can be answered without a video
    other         the question and the observation of another item, for the effect of any text of this form
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.evaluate.asker import SHAPE, ChatAsker, Request
from data_tools.evaluate.results import Run
from data_tools.records.files import files_of
from data_tools.records.left_out import Dropped
from data_tools.steps.asking import asking_step
from data_tools.steps.generate_settings import GenerateSettings, prompt_of
from data_tools.steps.run import OnRecord, Outcome, StepReport
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.reading import read_values
from verl_p2r.data.record import Record
from verl_p2r.evaluation import score
from verl_p2r.evaluation.mismatch import stated_option
from verl_p2r.judge.answer_only import states_only_the_answer
from verl_p2r.judge.guards import MAX_OBSERVATION, as_data
from verl_p2r.template import parse_response

PASSES = ("observation", "question", "other")
DEFAULTS = GenerateSettings(temperature=0.0, max_tokens=1024, prompt_template="chain_of_thought")

_WITH = "This was seen in a video:\n{observation}\n\n{prompt}"


def sufficiency(
    run: Run,
    folder: Path,
    settings: GenerateSettings,
    protocol: str,
    *,
    passes: Sequence[str] = PASSES,
    on_record: OnRecord = lambda kept: None,
) -> tuple[list[StepReport], dict[str, dict[str, Any]]]:
    """Let a text-only model answer a run's items without their videos.

    Args:
        run: the run whose observations are used.
        folder: output folder, with a step's folder for each pass and `sufficiency.json`.
        settings: `DEFAULTS`, with the text model and its servers.
        protocol: name of the protocol that scores the answers.
        passes: names from `PASSES`.
        on_record: called once a record is settled.

    Returns:
        The report of each pass, which has failed if more than 1 % of its items have no reply; and pass → benchmark →
        figures of `evaluation.score`, where items without an observation or a reply score 0. The figures also have
        `names_answer`: benchmark → share of observations that state an answer outright.

    Raises:
        NobodyReplies: the server is down or refuses everything; replies so far are stored.
        ValueError: a setting or a folder cannot be used, or a pass is unknown.
    """
    if unknown := [name for name in passes if name not in PASSES]:
        raise ValueError(f"pass {unknown[0]!r} is unknown: name some of {', '.join(PASSES)}")
    files = files_of([run.folder])
    observations = _observations(run)
    others = _others(run, observations)
    reports: list[StepReport] = []
    result: dict[str, dict[str, Any]] = {}
    for name in passes:
        texts = {"observation": observations, "other": others, "question": None}[name]
        reports.append(_ask(name, files, folder / name, settings, texts, on_record))
        result[name] = score(_answered(run, folder / name), protocol)
    result["names_answer"] = _naming(run, observations)
    (folder / "sufficiency.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return reports, result


def _ask(
    name: str,
    files: Sequence[Path],
    folder: Path,
    settings: GenerateSettings,
    texts: Mapping[str, str] | None,
    on_record: OnRecord,
) -> StepReport:
    template = PromptTemplate.load(settings.prompt_template)

    async def request(record: Record) -> Request:
        prompt = prompt_of(record, template)
        if texts is None:
            return Request(prompt)
        observation = texts.get(record.problem_id)
        if not observation:
            why = "it, or every reply about another video," if name == "other" else "the reply"
            raise Dropped("output", "no observation", f"{why} has no complete <observation> block")
        return Request(_WITH.format(observation=as_data(observation, MAX_OBSERVATION), prompt=prompt))

    def apply(record: Record, reply: dict[str, Any]) -> Outcome:
        return replace(record, output=reply["output"], extra={**record.extra, **_without_output(reply)}), None

    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    fingerprint = {**settings.fingerprint(template), "pass": name, "texts": digest}
    asker = ChatAsker(settings, fingerprint, request, "the text-only model")
    step = f"sufficiency, {name}"
    return asking_step(step, files, folder, asker, apply, SHAPE, max_reject_share=0.01, on_record=on_record)


def _answered(run: Run, folder: Path) -> list[dict[str, Any]]:
    """Return the items of the run with the replies of the text-only model."""
    parts = sorted(folder.glob("part-*.jsonl"))
    replies = {raw.value["problem_id"]: raw.value for part in parts for raw in read_values(part)}
    return [{**record, **_reply_of(replies.get(record["problem_id"]))} for record in run.records]


def _reply_of(reply: Mapping[str, Any] | None) -> dict[str, Any]:
    if reply is None:
        return {"response": None, "lost": "no observation or no reply"}
    own = {name: reply.get(name) for name in ("finish_reason", "completion_tokens")}
    return {"response": reply.get("output") or "", "lost": None, **own}


def _observations(run: Run) -> dict[str, str]:
    parsed = {record["problem_id"]: parse_response(record["response"] or "").observation for record in run.records}
    return {key: text for key, text in parsed.items() if text}


def _others(run: Run, observations: Mapping[str, str]) -> dict[str, str]:
    """Return for each item the observation of another video, half of the benchmark further on."""
    others: dict[str, str] = {}
    for benchmark in dict.fromkeys(record["benchmark"] for record in run.records):
        own = [
            record
            for record in run.records
            if record["benchmark"] == benchmark and record["problem_id"] in observations
        ]
        for number, record in enumerate(own):
            turned = own[(number + len(own) // 2) % len(own) :] + own[: (number + len(own) // 2) % len(own)]
            other = next((one for one in turned if one["video_id"] != record["video_id"]), None)
            if other is not None:
                others[record["problem_id"]] = observations[other["problem_id"]]
    return others


def _naming(run: Run, observations: Mapping[str, str]) -> dict[str, float]:
    """Return for each benchmark the share of observations that state an answer outright or hold nothing else."""
    counts: dict[str, list[bool]] = {}
    for record in run.records:
        text = observations.get(record["problem_id"])
        if text:
            options = record["options"] or []
            question = "\n".join([record["problem"], *options])
            names = states_only_the_answer(question, record["solution"], as_data(text, MAX_OBSERVATION))
            counts.setdefault(record["benchmark"], []).append(names or stated_option(text, options) is not None)
    return {benchmark: sum(found) / len(found) for benchmark, found in counts.items()}


def _without_output(reply: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in reply.items() if name != "output"}
