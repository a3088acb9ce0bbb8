# SPDX-License-Identifier: Apache-2.0
"""The reward manager `p2r`: scores a response with two process rewards."""

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_p2r.accuracy import answer_accuracy
from verl_p2r.data.rows import Row
from verl_p2r.evaluation import validation_scores
from verl_p2r.judge import FactsJudge, SecondAnswer, Verdict, ask
from verl_p2r.judge.self_judge import FIELD
from verl_p2r.plugin.rl.metrics import MEMBER
from verl_p2r.plugin.rl.verl_judge import make_judge
from verl_p2r.rewards import has_observation, perception_reward, reasoning_reward
from verl_p2r.segments import decode_response, perception_length, visible_lengths
from verl_p2r.settings import P2RSettings
from verl_p2r.template import ParsedResponse, parse_response

_NOT_ASKED = Verdict(None, "", "rule")


@dataclasses.dataclass(frozen=True)
class _Reading:
    """What is read off a response: its texts, boundary and visible lengths, and the accuracy of its answers."""

    parsed: ParsedResponse
    boundary: int
    visible: tuple[int, int]
    accuracy: float
    acc: float
    second: SecondAnswer | None


@register("p2r")
class P2RRewardManager(RewardManagerBase):
    """Rewards perception and reasoning of each response separately (arXiv 2511.11113, Eq. 5).

    The scalar that verl stores is the sum R_P + R_R. The parts are in `reward_extra_info`, with the same keys for every
    response:

    | key                                  | meaning                                                              |
    |--------------------------------------|----------------------------------------------------------------------|
    | `{process}_reward`                   | R_k, the sum of the three terms with their weights                   |
    | `{process}_accuracy`                 | R_acc,k before weights, P(Yes) if soft; None without a verdict       |
    | `{process}_format`                   | R_form,k before weights                                              |
    | `{process}_length_reward`            | R_len,k, from the tokens of visible text inside the blocks [ours]    |
    | `{process}_tokens`                   | length of the whole segment in tokens, tags and blanks included      |
    | `perception_valid`                   | 0 when the judge gave no verdict, else 1                             |
    | `both_rewards`                       | an integer that differs when either reward does, for `filter_groups` |
    | `acc`                                | the name verl's validation looks for: `reasoning_accuracy`; of rows  |
    |                                      | whose `data_source` is a benchmark, the score of `video_r1`          |
    | `judge_error`                        | why there is no verdict; empty when there is one                     |
    | `judge_{seconds,cached,retries}`     | time of the verdict, whether it was cached, number of retries; None  |
    |                                      | when the judge was not needed                                        |
    | `data_source`                        | of the row, so that dumped responses can be grouped by it            |
    | `judge_{prompt,completion}_tokens`   | tokens of the verdict, as the server counts them; None likewise      |
    | `judge_agrees`                       | whether another judge gave the same verdict; None without one        |
    | `judge_share_of_sampling`            | time of the judge `self`'s second answer, divided by the time of     |
    |                                      | sampling the response; None for other judges                         |
    | `verdict_{member}`                   | verdict of each member of a combined judge, 1 or 0; None if it       |
    |                                      | reached none or was not asked                                        |
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        **_kwargs: Any,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        self.settings = P2RSettings.from_mapping(config.algorithm.get("p2r") or {})
        self.judge = make_judge(config, self.settings, reward_router_address)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one response.

        Args:
            data: one row (the last one if a session has several outputs) with `responses`, `attention_mask` and the
                dataset's columns.

        Returns:
            `{"reward_score": R_P + R_R, "reward_extra_info": {...}}`, as described in the class.

        Raises:
            ValueError: a row with an unknown problem type, no ground truth, or no facts for the judge `facts`.
        """
        item = data[-1]
        ids = item.batch["responses"]
        length = int(item.batch["attention_mask"][len(item.batch["prompts"]) :].sum())
        ids = ids[:length].tolist()
        row = Row.from_columns(item.non_tensor_batch)
        loop = asyncio.get_running_loop()
        reading = await loop.run_in_executor(None, self._read, ids, row, item.non_tensor_batch)
        parsed, second = reading.parsed, reading.second
        # With R_P off (an ablation) the facts judge is still asked, because it is free and its metric is useful. [ours]
        asked = self.settings.perception.enabled or (isinstance(self.judge, FactsJudge) and row.facts is not None)
        start = loop.time()
        verdict = await self._verdict(parsed, row, second) if asked else _NOT_ASKED
        seconds = loop.time() - start + verdict.seconds
        perceived = verdict.accuracy(self.settings.judge.soft)
        perception = perception_reward(parsed, reading.visible[0], perceived, self.settings)
        reasoning = reasoning_reward(parsed, reading.visible[1], reading.accuracy, self.settings)
        extra = {
            "perception_reward": perception.total,
            "perception_accuracy": perceived,
            "perception_format": float(parsed.perception_well_formed),
            "perception_length_reward": perception.length,
            "perception_tokens": reading.boundary,
            "perception_valid": int(verdict.value is not None or not asked),
            "reasoning_reward": reasoning.total,
            "reasoning_accuracy": reading.accuracy,
            "reasoning_format": float(parsed.reasoning_well_formed),
            "reasoning_length_reward": reasoning.length,
            "reasoning_tokens": length - reading.boundary,
            "both_rewards": _both(perception.total, reasoning.total),
            "acc": reading.acc,
            "judge_error": verdict.reason if asked and verdict.value is None else "",
            "data_source": str(item.non_tensor_batch.get("data_source", "")),
            **self._judge_columns(verdict, seconds, second),
        }
        return {"reward_score": perception.total + reasoning.total, "reward_extra_info": extra}

    def _judge_columns(self, verdict: Verdict, seconds: float, second: SecondAnswer | None) -> dict[str, float | None]:
        """What the judge took, and what each member of a combined judge said; None if it was not asked."""
        judged = verdict.source != "rule"
        columns: dict[str, float | None] = {
            "judge_seconds": seconds if judged else None,
            "judge_cached": int(verdict.source == "cache") if judged else None,
            "judge_retries": verdict.retries if judged else None,
            "judge_prompt_tokens": verdict.prompt_tokens if judged else None,
            "judge_completion_tokens": verdict.completion_tokens if judged else None,
            "judge_agrees": None if verdict.agrees is None else int(verdict.agrees),
            "judge_share_of_sampling": second.seconds / second.sampling_seconds if second else None,
        }
        said = dict(verdict.members)
        for label in getattr(self.judge, "labels", ()):
            value = said.get(label)
            columns[f"{MEMBER}{label}"] = None if value is None else float(value)
        return columns

    def _read(self, ids: list[int], row: Row, columns: Mapping[str, Any]) -> _Reading:
        """The CPU-bound part, which runs off the event loop: parse, find the boundary, measure, compare the answers."""
        text = decode_response(ids, self.tokenizer)
        parsed = parse_response(text)
        accuracy = self._accuracy(parsed.answer, row)
        source = str(columns.get("data_source", ""))
        scores = validation_scores(source, text, row.solution, row.problem_type, row.options)
        second, fields = None, (columns.get("tool_extra_fields") or {}).get(FIELD)
        if fields is not None:
            second = SecondAnswer(**{**fields, "accuracy": self._accuracy(fields["text"], row)})
        return _Reading(
            parsed=parsed,
            boundary=perception_length(ids, self.tokenizer),
            visible=visible_lengths(ids, self.tokenizer),
            accuracy=accuracy,
            acc=accuracy if scores is None else scores[0],
            second=second,
        )

    def _accuracy(self, answer: str | None, row: Row) -> float:
        return answer_accuracy(
            row.problem_type, answer or "", row.solution, strict=self.settings.strict, options=row.options
        )

    async def _verdict(self, parsed: ParsedResponse, row: Row, second: SecondAnswer | None) -> Verdict:
        if not has_observation(parsed):
            return Verdict(False, "no complete observation", "rule")
        request = row.judge_request(parsed.observation or "", second)
        return await ask(self.judge, request, self.settings.judge.guards)


def _both(perception: float, reasoning: float) -> int:
    """One integer for two rewards, equal only if both are equal to four decimals.

    verl drops a group whose metric is constant. The sum cannot be that metric, because (1, 0) and (0, 1) have equal
    sums.
    """
    return round(perception * 10_000) * 1_000_000 + round(reasoning * 10_000)
