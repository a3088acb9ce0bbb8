# SPDX-License-Identifier: Apache-2.0
"""The reward manager `p2r` on rows as verl's agent loop hands them over, with a real tokenizer."""

import asyncio

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.trainer.ppo.metric_utils import process_validation_metrics

from verl_p2r.judge import Verdict
from verl_p2r.segments import visible_lengths

GOOD = "<observation>A red ball moves left.</observation>\n<think>Red is B.</think>\n<answer>B</answer>"
BLIND = "<observation>A ball.</observation>\n<think>Red is B.</think>\n<answer>B</answer>"
WRONG = "<observation>A red ball.</observation>\n<think>Hm.</think>\n<answer>A</answer>"
MALFORMED = "It is <think>red"


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE trained on the spot."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [GOOD, BLIND, WRONG, MALFORMED],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")


class SilentJudge:
    """Reaches no verdict."""

    async def judge(self, request):
        return Verdict(None, "the line is dead")


class CuriousJudge:
    """Passes everything and keeps what it was asked."""

    seen: list = []  # noqa: RUF012

    async def judge(self, request):
        self.seen.append(request)
        return Verdict(True, "")


def manager(tokenizer, **p2r):
    small = {"length": {"minimum": 1, "maximum": 200}}
    p2r = {"perception": small, "reasoning": small, **p2r}
    return get_reward_manager_cls("p2r")(OmegaConf.create({"algorithm": {"p2r": p2r}}), tokenizer)


def judged_by(name: str, **settings):
    return {"judge": {"name": f"{__name__}:{name}"}, **settings}


FIELDS = {
    "data_source": "toy",
    "problem_type": "multiple choice",
    "reward_model": {"ground_truth": "<answer>B</answer>", "style": "rule"},
    "raw_prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which colour?"}]}],
    "extra_info": {"index": 17, "split": "train", "facts": ["red"], "options": ["A. blue", "B. red"]},
    "uid": "a",
    "global_steps": 3,
}


def data(tokenizer, *texts: str, end: bool = True, **fields) -> DataProto:
    """The row of a session as `AgentLoopWorker._compute_score` builds it; several texts are several outputs."""
    fields = {**FIELDS, **fields}
    prompts = [torch.arange(5) for _ in texts]
    responses = [torch.tensor(tokenizer.encode(t) + [tokenizer.eos_token_id] * end, dtype=torch.int64) for t in texts]
    ids = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]

    def pad(rows):
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)

    batch = TensorDict(
        {
            "prompts": pad(prompts),
            "responses": pad(responses),
            "attention_mask": pad([torch.ones_like(row) for row in ids]),
            "input_ids": pad(ids),
            "position_ids": pad([torch.arange(len(row)) for row in ids]),
        },
        batch_size=len(texts),
    )
    non_tensor = {k: np.array([v] * len(texts)) for k, v in fields.items() if v is not None}
    non_tensor["tool_extra_fields"] = np.array([{}] * len(texts), dtype=object)
    return DataProto(batch=batch, non_tensor_batch=non_tensor)


def score(manager, row: DataProto) -> tuple[float, dict]:
    result = asyncio.run(manager.run_single(row))
    assert result.keys() == {"reward_score", "reward_extra_info"}
    return result["reward_score"], result["reward_extra_info"]


def test_rewards_of_perfect_response_match_hand_computed_values(tokenizer):
    total, info = score(manager(tokenizer), data(tokenizer, GOOD))
    end = GOOD.index("</observation>") + len("</observation>")
    tokens = len(tokenizer.encode(GOOD)) + 1
    perception_tokens = len(tokenizer.encode(GOOD[:end]))  # no token straddles a tag's ">" in this vocabulary
    assert total == pytest.approx(4.4)
    assert info == {
        "perception_reward": pytest.approx(2.2),
        "perception_accuracy": 1.0,
        "perception_format": 1.0,
        "perception_length_reward": 0.2,
        "perception_tokens": perception_tokens,
        "perception_valid": 1,
        "reasoning_reward": pytest.approx(2.2),
        "reasoning_accuracy": 1.0,
        "reasoning_format": 1.0,
        "reasoning_length_reward": 0.2,
        "reasoning_tokens": tokens - perception_tokens,  # end-of-sequence included
        "both_rewards": info["both_rewards"],
        "acc": 1.0,
        "judge_error": "",
        "judge_seconds": info["judge_seconds"],
        "judge_cached": 0,
        "judge_retries": 0,
        "data_source": "toy",
        "judge_prompt_tokens": 0,
        "judge_completion_tokens": 0,
        "judge_agrees": None,
        "judge_share_of_sampling": None,
    }
    assert 0 <= info["judge_seconds"] < 60


@pytest.mark.parametrize("padding", ["\n", " ", "\u200b", "\u3164", "\u00a0"], ids=ascii)
def test_invisible_padding_changes_token_count_but_not_length_reward(tokenizer, padding):
    """Bands that begin just above what is visible: no padding, wherever it stands, reaches them."""
    visible = visible_lengths(tokenizer.encode(GOOD), tokenizer)
    bands = [{"length": {"minimum": tokens + 1, "maximum": 2000}} for tokens in visible]
    strict_bands = manager(tokenizer, perception=bands[0], reasoning=bands[1])
    _, plain = score(strict_bands, data(tokenizer, GOOD))
    for place in range(0, len(GOOD) + 1):
        if place not in (0, len(GOOD)) and GOOD[place - 1] != ">" and GOOD[place] != "<":
            continue  # only where a tag ends or begins
        _, info = score(strict_bands, data(tokenizer, GOOD[:place] + padding * 100 + GOOD[place:]))
        assert info["perception_length_reward"] == info["reasoning_length_reward"] == 0
        tokens = [info[f"{process}_tokens"] for process in ("perception", "reasoning")]
        assert sum(tokens) > plain["perception_tokens"] + plain["reasoning_tokens"]  # the metric counts all of them


@pytest.mark.parametrize(
    ("text", "perception", "reasoning"),
    [(BLIND, 1.0, 2.2), (WRONG, 2.2, 1.0), (MALFORMED, 0.0, 0.0), ("", 0.0, 0.0), (GOOD[2:], 0.0, 2.2)],
    ids=["blind", "wrong", "malformed", "empty", "no opening tag"],
)
def test_failure_of_one_process_keeps_reward_of_the_other(tokenizer, text, perception, reasoning):
    """In the last text, everything before `<think>` belongs to perception, so its reasoning keeps its rewards."""
    total, info = score(manager(tokenizer), data(tokenizer, text))
    assert info["perception_reward"] == pytest.approx(perception)
    assert info["reasoning_reward"] == pytest.approx(reasoning)
    assert total == info["perception_reward"] + info["reasoning_reward"]


def test_reward_info_has_same_plain_keys_in_every_case(tokenizer):
    """verl's validation breaks on lists, and on keys that come and go."""
    settings = {
        "good": ({}, GOOD),
        "malformed": ({}, MALFORMED),
        "empty": ({}, ""),
        "no verdict": (judged_by("SilentJudge"), GOOD),
        "perception off": ({"perception": {"enabled": False}}, GOOD),
        "reasoning off": ({"reasoning": {"enabled": False}}, GOOD),
    }
    infos = [score(manager(tokenizer, **p2r), data(tokenizer, text))[1] for p2r, text in settings.values()]
    assert len({tuple(info) for info in infos}) == 1
    for info in infos:
        assert {type(value) for value in info.values()} <= {int, float, str, type(None)}
    columns = {key: [info[key] for info in infos] for key in infos[0]}
    found = process_validation_metrics(["toy"] * 6, ["a", "a", "a", "b", "b", "b"], {"reward": [0.0] * 6, **columns})
    assert found["toy"]["perception_format"]["mean@3"] == pytest.approx(4 / 6)
    assert found["toy"]["acc"]["mean@3"] == pytest.approx(4 / 6)
    never = {"judge_agrees", "judge_share_of_sampling"}  # None of these judges measures them.
    assert columns.keys() - found["toy"].keys() == {"judge_error", "data_source", *never}  # the first two are texts
    # None is left out: "a" has three verdicts, one Yes; "b" has two, both Yes, and one row without.
    means = found["toy"]["perception_accuracy"]
    assert (means["mean@3"], means["mean@2"]) == (pytest.approx(1 / 3), 1.0)


def test_empty_response_counts_zero_tokens(tokenizer):
    _, info = score(manager(tokenizer), data(tokenizer, "", end=False))
    assert info["perception_tokens"] == info["reasoning_tokens"] == 0


def test_missing_verdict_makes_row_invalid(tokenizer):
    total, info = score(manager(tokenizer, **judged_by("SilentJudge")), data(tokenizer, GOOD))
    assert info["perception_valid"] == 0
    assert info["perception_accuracy"] is None
    assert info["judge_error"] == "the line is dead"
    assert info["perception_reward"] == 1.0  # its form
    assert info["reasoning_reward"] == pytest.approx(2.2)
    assert total == pytest.approx(3.2)


def test_a_response_without_an_observation_needs_no_verdict(tokenizer):
    _, info = score(manager(tokenizer, **judged_by("SilentJudge")), data(tokenizer, MALFORMED))
    assert (info["perception_valid"], info["perception_accuracy"], info["judge_seconds"]) == (1, 0.0, None)


def test_guarded_observation_gets_no_without_asking_judge(tokenizer):
    CuriousJudge.seen.clear()
    judge = judged_by("CuriousJudge")["judge"]
    row = data(tokenizer, GOOD.replace("A red ball moves left.", "The answer is B."))
    guarded = manager(tokenizer, judge={**judge, "guards": {"answer_only": True}})
    _, info = score(guarded, row)
    assert (info["perception_accuracy"], info["perception_valid"], info["judge_seconds"]) == (0.0, 1, None)
    assert not CuriousJudge.seen
    _, info = score(manager(tokenizer, judge=judge), row)  # the paper's setting
    assert info["perception_accuracy"] == 1.0
    assert len(CuriousJudge.seen) == 1


def openai_judge(server, **kwargs) -> dict:
    return {"name": "openai", "kwargs": {"model": "judge", "base_urls": server.base_url, **kwargs}}


def test_responses_are_judged_over_http_concurrently(tokenizer, judge_server):
    """32 rollouts of 0.3 s each, as many calls at once; equal observations are paid for once."""
    judge_server.control(latency=0.3)
    texts = [GOOD.replace("red ball", f"{'red' if i % 2 else 'blue'} ball {i // 2 % 8}") for i in range(32)]
    question = {"index": 17, "split": "train", "question": "Which colour?\nA. blue\nB. red"}
    rows = [data(tokenizer, text, extra_info=question) for text in texts]
    own = manager(tokenizer, judge=openai_judge(judge_server))

    async def main():
        results = await asyncio.gather(*(own.run_single(row) for row in rows))
        await own.judge.aclose()
        return results

    infos = [result["reward_extra_info"] for result in asyncio.run(main())]
    assert [info["perception_accuracy"] for info in infos] == [float(i % 2) for i in range(32)]
    assert sum(info["judge_cached"] for info in infos) == 16
    assert all(info["judge_seconds"] > 0.25 for info in infos)
    calls = judge_server.calls()
    assert len(calls) == 16
    assert max(call.start for call in calls) < min(call.end for call in calls)  # none waited for another


def test_unreachable_judge_marks_rows_without_losing_them(tokenizer, judge_server):
    judge_server.kill()
    own = manager(tokenizer, judge=openai_judge(judge_server, deadline_s=0.5, timeout_s=0.5, connect_timeout_s=0.5))
    _, info = score(own, data(tokenizer, GOOD))
    assert (info["perception_valid"], info["perception_accuracy"], info["reasoning_accuracy"]) == (0, None, 1.0)
    assert "no server may be asked for 0.5 s" in info["judge_error"]
    assert "ClientConnectorError" in info["judge_error"]


def test_disabled_perception_does_not_ask_paid_judge(tokenizer):
    off = {"perception": {"enabled": False}}
    total, info = score(manager(tokenizer, **judged_by("SilentJudge", **off)), data(tokenizer, GOOD))
    assert total == pytest.approx(2.2)
    assert (info["perception_reward"], info["perception_valid"], info["perception_format"]) == (0.0, 1, 1.0)
    assert (info["perception_accuracy"], info["judge_error"], info["judge_seconds"]) == (None, "", None)


def test_disabled_perception_still_measures_with_facts_judge(tokenizer):
    free = manager(tokenizer, perception={"enabled": False})
    for text, accuracy in ((GOOD, 1.0), (BLIND, 0.0)):
        total, info = score(free, data(tokenizer, text))
        assert info["perception_accuracy"] == accuracy
        assert total == info["reasoning_reward"] == pytest.approx(2.2)
        assert info["perception_reward"] == 0.0


def test_judge_request_holds_row_fields_and_observation(tokenizer):
    CuriousJudge.seen.clear()
    score(manager(tokenizer, **judged_by("CuriousJudge")), data(tokenizer, GOOD))
    (request,) = CuriousJudge.seen
    assert request.question == "Which colour?"
    assert request.solution == "<answer>B</answer>"
    assert request.observation == "A red ball moves left."
    assert request.problem_type == "multiple choice"
    assert request.row == "train row 17"
    assert [fact.state for fact in request.facts] == ["red"]


def test_reward_manager_accepts_columns_as_read_from_parquet(tokenizer):
    """Lists come back as numpy arrays, absent ones as None, and structs with every key of the file."""
    extra = {
        "index": np.int64(17),
        "split": "train",
        "question": None,
        "options": np.array(["A. blue", "B. red"], dtype=object),
        "facts": np.array([{"state": "red", "not": np.array(["blue"], dtype=object)}, {"state": "ball", "not": None}]),
    }
    prompt = np.array([{"role": "user", "content": "Which colour?"}], dtype=object)
    total, _ = score(manager(tokenizer), data(tokenizer, GOOD, extra_info=extra, prompt=prompt))
    assert total == pytest.approx(4.4)
    blue = GOOD.replace("red", "red and blue")
    _, info = score(manager(tokenizer), data(tokenizer, blue, extra_info=extra))
    assert info["perception_accuracy"] == 0.0


def test_last_of_several_outputs_is_scored(tokenizer):
    _, last = score(manager(tokenizer), data(tokenizer, GOOD + " and much more than that", WRONG))
    _, alone = score(manager(tokenizer), data(tokenizer, WRONG))
    assert {**last, "judge_seconds": 0} == {**alone, "judge_seconds": 0}


def test_strict_setting_reaches_answer_accuracy(tokenizer):
    """Video-R1 compares whole strings: an option's letter with its text is wrong for it."""
    text = GOOD.replace("<answer>B</answer>", "<answer>B. red</answer>")
    row = data(tokenizer, text)
    assert score(manager(tokenizer), row)[1]["reasoning_accuracy"] == 1.0
    assert score(manager(tokenizer, strict=True), row)[1]["reasoning_accuracy"] == 0.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"problem_type": "riddle"}, r"train row 17: field problem_type is .*riddle.*: give one of multiple choice"),
        ({"problem_type": None}, "train row 17: field problem_type is None"),
        ({"reward_model": {"ground_truth": " "}}, "train row 17: field reward_model.ground_truth is ' '.*drop the row"),
        ({"reward_model": None}, "train row 17: field reward_model.ground_truth is None"),
        (
            {"extra_info": {"index": 17, "split": "train"}},
            "train row 17: the facts judge found no extra_info.facts.*another judge",
        ),
        ({"extra_info": {"index": 17, "split": "train", "facts": "red"}}, "train row 17: field extra_info.facts: "),
    ],
)
def test_invalid_reward_row_error_names_row_and_field(tokenizer, fields, message):
    with pytest.raises(ValueError, match=message):
        score(manager(tokenizer), data(tokenizer, GOOD, **fields))


def test_both_rewards_number_differs_if_either_reward_differs(tokenizer):
    """Also where the sums agree: a group is dropped when this number is constant."""
    numbers = {score(manager(tokenizer), data(tokenizer, text))[1]["both_rewards"] for text in (GOOD, BLIND, WRONG, "")}
    assert len(numbers) == 4
    assert all(type(number) is int for number in numbers)


@pytest.mark.parametrize(
    ("p2r", "message"),
    [
        ({"judge": {"name": "oracle"}}, "'oracle' is unknown"),
        ({"strickt": True}, r"algorithm\.p2r\.strickt does not exist: did you mean strict"),
    ],
)
def test_reward_manager_checks_settings_when_built(tokenizer, p2r, message):
    with pytest.raises(ValueError, match=message):
        manager(tokenizer, **p2r)


def test_benchmark_rows_are_validated_with_evaluation_score(tokenizer):
    """Mean relative accuracy, and the letter to the letter, where the reward is lenient and the relative error."""
    number = {"problem_type": "regression", "reward_model": {"ground_truth": "4", "style": "rule"}}
    near = GOOD.replace("<answer>B<", "<answer>3<")
    _, benchmark = score(manager(tokenizer), data(tokenizer, near, data_source="vsi_bench", **number))
    _, other = score(manager(tokenizer), data(tokenizer, near, **number))
    assert (benchmark["acc"], other["acc"]) == (0.5, pytest.approx(0.75))
    assert benchmark["reasoning_accuracy"] == other["reasoning_accuracy"]
    bracketed = GOOD.replace("<answer>B<", "<answer>(B)<")
    _, benchmark = score(manager(tokenizer), data(tokenizer, bracketed, data_source="mvbench"))
    assert (benchmark["acc"], benchmark["reasoning_accuracy"]) == (0.0, 1.0)
