# SPDX-License-Identifier: Apache-2.0
"""A verdict in one token: against a real HTTP server that refuses what some servers refuse, and replies by hand."""

import asyncio
import json
import logging
import math
import sqlite3

import pytest
from judge_requests import make, request, run
from scripted_server import ScriptedServer, completion, http

from verl_p2r.chat import client as chat_client
from verl_p2r.chat.reply import Reply, read_reply
from verl_p2r.judge import Verdict, default_template, get_judge
from verl_p2r.judge.openai_judge import OpenAIJudge
from verl_p2r.judge.single_token import FORMS, read_word
from verl_p2r.judge.verdict_cache import VerdictCache


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(chat_client, "_BACKOFF_S", 0.01)


def asked(server) -> list[str]:
    return [call.outcome for call in server.calls()]


def test_one_token_gives_a_verdict_and_a_probability(judge_server):
    yes, no = run(make(judge_server, reply="single_token"), request(1), request(2))
    assert (yes.value, yes.probability, yes.reason) == (True, 0.9, "Yes, P(Yes) = 0.900")
    assert (no.value, no.probability, no.reason) == (False, 0.1, "No, P(Yes) = 0.100")
    assert yes.completion_tokens == no.completion_tokens == 1
    assert asked(judge_server) == ["ok", "ok"]


def test_request_body_holds_expected_options():
    async def main():
        async with ScriptedServer(lambda head, body: http(completion("Yes"))) as server:
            judge = OpenAIJudge("m", server.base_url, reply="single_token", extra_body={"seed": 7})
            verdict = await judge.judge(request())
            await judge.aclose()
            return verdict, json.loads(server.bodies[0])

    verdict, body = asyncio.run(main())
    assert verdict.value is True
    (message,) = body.pop("messages")
    assert message["content"].endswith("Reply with one word and nothing else: Yes or No.\n")
    assert body == {
        "model": "m",
        "temperature": 0.0,
        "max_tokens": 1,
        "seed": 7,
        "structured_outputs": {"choice": ["Yes", "No"]},
        "logprobs": True,
        "top_logprobs": 5,
    }


@pytest.mark.parametrize(
    ("refused", "calls", "probability"),
    [
        ([], ["ok", "ok"], 0.9),
        (["structured_outputs"], ["400", "ok", "ok"], 0.9),
        (["structured_outputs", "logprobs"], ["400", "400", "ok", "ok"], None),
        (["logprobs"], ["400", "400", "ok", "ok"], None),
    ],
)
def test_a_server_that_refuses_a_field_is_asked_without_it_and_that_is_remembered(
    judge_server, caplog, refused, calls, probability
):
    judge_server.control(refuses=refused)
    judge = make(judge_server, reply="single_token")

    async def one_after_the_other():
        verdicts = [await judge.judge(request(1)), await judge.judge(request(3))]
        await judge.aclose()
        return verdicts

    with caplog.at_level(logging.WARNING):
        verdicts = asyncio.run(one_after_the_other())
    assert [(v.value, v.probability) for v in verdicts] == [(True, probability)] * 2
    assert asked(judge_server) == calls
    warnings = [record.message for record in caplog.records if "each verdict is one token with" in record.message]
    assert len(warnings) == bool(refused)
    if refused:
        assert "does not accept structured_outputs and logprobs" in warnings[0]
        assert f"Unrecognized request argument supplied: {refused[0]}" in warnings[0]
        assert ("a soft reward is a hard one" in warnings[0]) is (probability is None)


def test_a_request_that_is_refused_for_another_reason_changes_nothing_for_the_others(judge_server):
    judge_server.control(rules=[{"contains": "Ball 5 ", "fault": "400"}])
    judge = make(judge_server, reply="single_token")
    (refused,) = run(judge, request(5))
    assert (refused.value, refused.status) == (None, 400)
    assert asked(judge_server) == ["400"] * len(FORMS)
    judge_server.control(unconstrained="Perhaps")  # which only a constrained request is spared
    (verdict,) = run(judge, request(1))
    assert (verdict.value, verdict.probability) == (True, 0.9)


@pytest.mark.parametrize("status", ["401", "404"])
def test_other_refusals_are_not_tried_in_other_forms(judge_server, status):
    judge_server.control(shares={status: 1.0})
    (verdict,) = run(make(judge_server, reply="single_token"), request())
    assert (verdict.value, verdict.status) == (None, int(status))
    assert asked(judge_server) == [status]


def test_a_small_model_that_never_says_yes_or_no_always_answers(judge_server):
    """Constrained, or by the likelier of the two words; without either there is no verdict."""
    judge_server.control(unconstrained="Perhaps")
    assert run(make(judge_server, reply="single_token"), request())[0].value is True
    judge_server.control(unconstrained="Perhaps", refuses=["structured_outputs"])
    (verdict,) = run(make(judge_server, reply="single_token"), request())
    assert (verdict.value, verdict.probability) == (True, 0.9)  # 0.45 against 0.05
    judge_server.control(unconstrained="Perhaps", refuses=["structured_outputs", "logprobs"])
    (verdict,) = run(make(judge_server, reply="single_token"), request())
    assert verdict.value is None
    assert "neither Yes nor No in the reply: 'Perhaps'" in verdict.reason


LOG = math.log


@pytest.mark.parametrize(
    ("text", "top", "word"),
    [
        ("Yes", {"Yes": 0.6, "No": 0.2}, (True, 0.75)),
        ("Yes", {"Yes": 0.4, "No": 0.3, " no": 0.2}, (False, 0.4444)),  # 0.4 of 0.9: all spellings count
        ("**Yes**", {}, (True, None)),
        ("no.", {}, (False, None)),
        ("N", {"N": 0.9, "Y": 0.1}, (False, 0.1)),  # the first piece of a word
        ("The", {"The": 0.8, "Yes": 0.06, "No": 0.05}, (True, 0.5455)),  # 0.06 of 0.11
        ("The", {"The": 0.93, "Yes": 0.04, "No": 0.03}, None),  # too little
        ("Yes", {"Yes": 1.0}, (True, 1.0)),
        ("Yes", {"maybe": 0.9}, (True, None)),
        ("Yellow", {}, None),
        ("Nothing", {"Nothing": 1.0}, None),
        ("", {}, None),
        ("是", {}, None),
    ],
)
def test_a_word_by_hand(text, top, word):
    reply = Reply(text, top=tuple((token, LOG(share)) for token, share in top.items()))
    assert read_word(reply) == word


@pytest.mark.parametrize(
    ("logprobs", "top"),
    [
        ({"content": [{"token": "Yes", "logprob": -0.5, "top_logprobs": []}]}, (("Yes", -0.5),)),
        (
            {"content": [{"top_logprobs": [{"token": "No", "logprob": -1}, {"token": 3, "logprob": -1}]}]},
            (("No", -1.0),),
        ),
        ({"content": [{"top_logprobs": [{"token": "No", "logprob": "high"}]}]}, ()),
        ({"content": [{"top_logprobs": [{"token": "No", "logprob": float("nan")}]}]}, ()),
        ({"content": []}, ()),
        ({"content": None}, ()),
        ({"content": [None]}, ()),
        ({"content": {"0": 1}}, ()),
        (["content"], ()),
        (7, ()),
        (None, ()),
    ],
)
def test_log_probabilities_of_any_shape(logprobs, top):
    body = completion("Yes")
    body["choices"][0]["logprobs"] = logprobs
    assert read_reply(json.dumps(body).encode()).top == top


@pytest.mark.parametrize("reply", [Reply("", thought=True), Reply("<think>")])
def test_a_model_that_thinks_instead_gets_the_remedy(reply):
    judge = OpenAIJudge("m", "http://a/v1", reply="single_token")
    with pytest.raises(chat_client.UselessReply, match=r"it thinks: turn thinking off, .*enable_thinking: False"):
        judge._word(reply)


def test_the_two_prompts_differ_in_what_they_ask_the_model_to_write():
    explained, single = default_template(), default_template("judge_single_token")
    head, _, tail = explained.rpartition("\n\n")
    assert single == f"{head}\n\nReply with one word and nothing else: Yes or No.\n"
    assert tail.startswith("Explain in one or two sentences")


def test_max_tokens_of_none_is_left_to_the_server():
    judge = OpenAIJudge("m", "http://a/v1", reply="single_token", max_tokens=None)
    assert "max_tokens" not in judge._client.body


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"reply is 'token': use one of explained, single_token"):
        get_judge("openai", model="m", base_urls="http://a/v1", reply="token")


def test_the_two_forms_share_no_cached_verdict(judge_server, tmp_path):
    file = str(tmp_path / "verdicts.sqlite")
    for reply in ("explained", "single_token"):
        run(make(judge_server, cache_file=file, reply=reply), request())
    assert len(judge_server.calls()) == 2
    (verdict,) = run(make(judge_server, cache_file=file, reply="single_token"), request())
    assert (verdict.source, verdict.value, verdict.probability) == ("cache", True, 0.9)
    assert len(judge_server.calls()) == 2


def test_a_cache_file_of_an_earlier_version_gets_probabilities(tmp_path):
    file = tmp_path / "verdicts.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute(
            "CREATE TABLE verdicts (key BLOB PRIMARY KEY, value INTEGER NOT NULL, reason TEXT NOT NULL, "
            "model TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID"
        )
        connection.execute("INSERT INTO verdicts VALUES (?, 1, 'old', 'm', 0.0)", (b"old",))
    connection.close()

    async def make_new():
        return Verdict(False, "new", probability=0.25)

    async def never():
        raise AssertionError("the file has it")

    cache = VerdictCache(8, file, "m")
    assert asyncio.run(cache.get(b"old", never)) == Verdict(True, "old", "cache")
    asyncio.run(cache.get(b"new", make_new))
    cache.close()
    again = VerdictCache(8, file, "m")
    assert asyncio.run(again.get(b"new", never)) == Verdict(False, "new", "cache", probability=0.25)
    again.close()
