# SPDX-License-Identifier: Apache-2.0
"""The agent loop `p2r_self_judge`: the second request, and that everything else is verl's single turn."""

import asyncio
from typing import Any

import pytest
from cpu_config import make_config
from verl.experimental.agent_loop import SingleTurnAgentLoop
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, _agent_loop_registry
from verl.workers.rollout.replica import TokenOutput

from verl_p2r.judge import get_judge
from verl_p2r.judge.self_judge import AGENT_LOOP, FIELD
from verl_p2r.plugin.datasets.rl_dataset import P2RDataset
from verl_p2r.plugin.rl.self_judge_loop import SelfJudgeLoop, check_loop, without_media
from verl_p2r.settings import P2RSettings

RESPONSE = "<observation>a red square moves left</observation><think>so it is red</think><answer>A</answer>"
OBSERVED = "<observation>a red square moves left</observation>"
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
QUESTION = "What colour is shown?\nA. red\nB. green"


class Server:
    """In the place of verl's client: answers with texts in turn, and keeps the requests."""

    def __init__(self, tokenizer, *replies: str, stop: str = "completed"):
        self.tokenizer, self.replies, self.stop = tokenizer, list(replies), stop
        self.requests: list[dict[str, Any]] = []

    async def generate(self, request_id, **request) -> TokenOutput:
        self.requests.append({"request_id": request_id, **request})
        ids = self.tokenizer.encode(self.replies.pop(0), add_special_tokens=False)
        stop = "completed" if len(self.requests) == 1 else self.stop
        extra = {"global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason=stop, extra_fields=extra)


def columns(clip) -> dict[str, Any]:
    """A row as verl's worker hands it to a loop."""
    video = {"type": "video", "video": str(clip), "resized_height": 112, "resized_width": 112, "fps": 2.0}
    return {
        "raw_prompt": [{"role": "user", "content": [video, {"type": "text", "text": QUESTION}]}],
        "problem_type": "multiple choice",
        "reward_model": {"ground_truth": "<answer>A</answer>", "style": "rule"},
        "extra_info": {"index": 3, "split": "train", "question": QUESTION, "options": ["A. red", "B. green"]},
        "uid": "a",
        "session_id": 0,
    }


@pytest.fixture
def roll_out(processor, clips):
    """`roll_out(*replies, …)`: one rollout of the loop, with changes of the row; gives its output and the server."""

    def run(*replies: str, overrides: tuple[str, ...] = (), cls=SelfJudgeLoop, stop: str = "completed", row=None):
        sizes = ["data.max_prompt_length=160", "data.max_response_length=48", "p2r/judge=self"]
        config = make_config(*sizes, *overrides)
        server = Server(processor.tokenizer, *replies, stop=stop)

        async def once():
            loop = cls(
                trainer_config=DictConfigWrap(config),
                server_manager=server,
                tokenizer=processor.tokenizer,
                processor=processor,
                dataset_cls=P2RDataset,
                data_config=DictConfigWrap(config.data),
                hf_model_type="qwen2_5_vl",
            )
            return await loop.run(dict(SAMPLING), **columns(clips["quick"]) | (row or {}))

        return asyncio.run(once()), server

    return run


def test_verl_finds_the_loop_by_its_name():
    assert _agent_loop_registry[AGENT_LOOP] == {"_target_": "verl_p2r.plugin.rl.self_judge_loop.SelfJudgeLoop"}
    assert make_config("p2r/judge=self").actor_rollout_ref.rollout.agent.default_agent_loop == AGENT_LOOP


@pytest.mark.parametrize(
    ("think", "start", "reply"),
    [(False, "<answer>", "A</answer>"), (True, "<think>", "so it is red</think><answer>A</answer>")],
)
def test_the_policy_is_asked_again_without_the_video(roll_out, processor, think, start, reply):
    overrides = (
        f"algorithm.p2r.judge.second_answer.think={think}",
        "algorithm.p2r.judge.second_answer.max_tokens=20",
    )
    output, server = roll_out(RESPONSE, reply, overrides=overrides)
    first, second = server.requests
    assert len(first["video_data"]) == 1
    assert first["sampling_params"] == SAMPLING
    assert second.keys() == {"request_id", "prompt_ids", "sampling_params"}  # no medium
    assert second["request_id"] == "second-a" != first["request_id"]  # one server for all second answers to a question
    text = processor.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False
    )
    assert second["prompt_ids"] == processor.tokenizer.encode(text + OBSERVED + start, add_special_tokens=False)
    assert second["sampling_params"] == {
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "logprobs": False,
        "max_tokens": 20,
    }
    answer = output.extra_fields[FIELD]
    assert answer["text"] == "A"
    assert answer["prompt_tokens"] == len(second["prompt_ids"])
    assert answer["completion_tokens"] == len(processor.tokenizer.encode(reply, add_special_tokens=False))
    assert answer["seconds"] > 0
    assert answer["sampling_seconds"] == output.metrics.generate_sequences > 0


def test_the_row_is_that_of_verls_single_turn(roll_out):
    """The second answer trains nothing: no token of it is in the row."""
    ours, theirs = (
        output.model_dump(exclude={"metrics", "multi_modal_data", "mm_processor_output"})
        for output, _ in (roll_out(RESPONSE, "B</answer>"), roll_out(RESPONSE, cls=SingleTurnAgentLoop))
    )
    assert ours["extra_fields"].pop(FIELD)["text"] == "B"
    assert ours == theirs
    assert sum(ours["response_mask"]) == len(ours["response_ids"])


@pytest.mark.parametrize(
    ("response", "overrides"),
    [
        ("a red square moves left<answer>A</answer>", ()),
        ("<observation> </observation><answer>A</answer>", ()),
        ("<observation>A</observation><answer>A</answer>", ()),  # the guard: it merely states an answer
        (f"<observation>{QUESTION}</observation><answer>A</answer>", ()),  # the guard: it copies the question
        (RESPONSE, ("algorithm.p2r.perception.enabled=False",)),
    ],
    ids=["no observation", "empty", "answer only", "copied question", "perception off"],
)
def test_a_verdict_that_needs_no_second_answer_pays_for_none(roll_out, response, overrides):
    output, server = roll_out(response, overrides=overrides)
    assert output.extra_fields[FIELD] is None
    assert len(server.requests) == 1


def test_without_the_guards_the_policy_is_asked(roll_out):
    off = ("algorithm.p2r.judge.guards={answer_only:False,copied_question:False}",)
    output, _ = roll_out("<observation>A</observation><answer>A</answer>", "A</answer>", overrides=off)
    assert output.extra_fields[FIELD]["text"] == "A"


@pytest.mark.parametrize(("stop", "text"), [("completed", ""), ("aborted", None), ("abort", None)])
def test_an_unreadable_answer_is_wrong_and_an_aborted_one_unknown(roll_out, stop, text):
    output, _ = roll_out(RESPONSE, "so it is red", stop=stop)
    assert output.extra_fields[FIELD]["text"] == text


def test_the_second_prompt_leaves_room_for_an_answer(roll_out, processor):
    """A prompt without media that fills its limit, and an observation that fills the response's."""
    prompt = {"raw_prompt": [{"role": "user", "content": QUESTION}]}
    text = processor.apply_chat_template(prompt["raw_prompt"], add_generation_prompt=True, tokenize=False)
    length = len(processor.tokenizer.encode(text, add_special_tokens=False))
    response = f"<observation>{'red square ' * 10}</observation>"
    tokens = len(processor.tokenizer.encode(response, add_special_tokens=False))
    sizes = (f"data.max_prompt_length={length}", f"data.max_response_length={tokens}")
    output, server = roll_out(response, "A</answer>", overrides=sizes, row=prompt)
    assert len(output.response_ids) == tokens
    ids = server.requests[1]["prompt_ids"]
    assert len(ids) == length + tokens - 1  # the observation and `<answer>` would need more: its beginning gives way
    assert processor.tokenizer.decode(ids[:length]) == text
    assert processor.tokenizer.decode(ids).endswith("</observation><answer>")


class Combined:
    """A judge with members, as those that combine several have them."""

    def __init__(self, *names: str) -> None:
        self.members = {name: get_judge(name) for name in names}


def test_a_combined_judge_needs_the_loop_if_a_member_does():
    config = make_config()
    settings = P2RSettings()
    check_loop(config, settings, Combined("facts"))
    with pytest.raises(ValueError, match=f"default_agent_loop={AGENT_LOOP}"):
        check_loop(config, settings, Combined("facts", "self"))


def test_with_full_determinism_each_request_has_its_own_id(roll_out):
    """verl then gives vLLM the id as it is."""
    full = ("actor_rollout_ref.rollout.full_determinism=True",)
    _, server = roll_out(RESPONSE, "A</answer>", overrides=full)
    assert server.requests[1]["request_id"] == "second-a-0"


def test_a_conversation_without_its_media():
    image = {"type": "image_url", "image_url": {"url": "a.png"}}
    messages = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [image, {"type": "text", "text": "?"}, {"type": "audio", "audio": "a.wav"}]},
    ]
    assert without_media(messages) == [messages[0], {"role": "user", "content": [{"type": "text", "text": "?"}]}]
