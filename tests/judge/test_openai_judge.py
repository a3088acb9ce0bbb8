# SPDX-License-Identifier: Apache-2.0
"""The judge `openai` against a real HTTP server that fails on command: every call returns a verdict."""

import asyncio
import hashlib
import logging

import pytest
from aiohttp import web
from judge_requests import KEY, make, request, run
from judge_server import sha

from verl_p2r.chat import client as chat_client
from verl_p2r.chat.reply import read_reply
from verl_p2r.judge import PROMPT_VERSION, JudgeRequest, build_judge_prompt, check_judge, get_judge
from verl_p2r.judge import openai_judge as judge_client
from verl_p2r.judge.openai_judge import OpenAIJudge


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(chat_client, "_BACKOFF_S", 0.01)


def test_yes_and_no_verdicts_report_token_usage(judge_server):
    yes, no = run(make(judge_server), request(1), request(2))
    assert (yes.value, yes.source, yes.retries) == (True, "judge", 0)
    assert (no.value, no.source, no.retries) == (False, "judge", 0)
    assert yes.reason == "As asked.\n<judgement>Yes</judgement>"
    assert yes.prompt_tokens == len(build_judge_prompt(request(1)).split())
    assert yes.completion_tokens == 3
    assert {call.prompt for call in judge_server.calls()} == {sha(build_judge_prompt(request(n))) for n in (1, 2)}


TRANSIENT = ["500", "502", "503", "429", "408", "drop", "cut", "not_http", "junk", "truncated", "html"]
TRANSIENT += ["empty_choices", "null_content", "no_judgement", "contradiction", "hang"]


@pytest.mark.parametrize("fault", TRANSIENT)
def test_judge_retries_transient_faults(judge_server, fault):
    judge_server.control(sequence=[fault])
    (verdict,) = run(make(judge_server, timeout_s=0.5, connect_timeout_s=0.5), request())
    assert (verdict.value, verdict.retries) == (True, 1)
    outcome = {"hang": "gone", "no_judgement": "no_judgement"}.get(fault, fault)
    assert [call.outcome for call in judge_server.calls()] == [outcome, "ok"]


@pytest.mark.parametrize("fault", ["no_judgement", "contradiction"])
def test_reply_without_judgement_is_retried_once(judge_server, fault):
    judge_server.control(shares={fault: 1.0})
    (verdict,) = run(make(judge_server), request())
    assert verdict.value is None
    assert f"{judge_server.base_url}: no judgement in the reply: " in verdict.reason
    assert len(judge_server.calls()) == 2


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        ("400", "the server does not accept this request"),
        ("401", "the server rejected the API key in $OPENAI_API_KEY"),
        ("403", "the API key in $OPENAI_API_KEY may not use this model"),
        ("404", "the server has no model 'judge', or the URL lacks its path, usually /v1"),
        ("422", "the server does not accept this request"),
    ],
)
def test_permanent_http_errors_are_not_retried_and_give_remedy(judge_server, caplog, monkeypatch, status, remedy):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge_server.control(shares={status: 1.0})
    with caplog.at_level(logging.ERROR):
        verdicts = run(make(judge_server), *(request(n) for n in range(3)))
    for verdict in verdicts:
        assert verdict.value is None
        assert f"HTTP {status}" in verdict.reason
        assert "as told" in verdict.reason  # the server's own words
        assert remedy in verdict.reason
    assert len(judge_server.calls()) == 3
    assert len(caplog.records) == 1  # once, not for each row


def test_unset_api_key_variable_is_named(judge_server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("MY_KEY", raising=False)
    judge_server.control(api_key=KEY)
    (verdict,) = run(make(judge_server, api_key_env="MY_KEY"), request())
    assert "the API key in $MY_KEY, which is not set in this process" in verdict.reason
    monkeypatch.setenv("MY_KEY", KEY)
    assert run(make(judge_server, api_key_env="MY_KEY"), request())[0].value is True


def test_api_key_never_appears_in_messages_cache_or_repr(judge_server, monkeypatch, caplog, tmp_path):
    """The server echoes the model's name, which here is the key, like a server that quotes a wrong key."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    file = tmp_path / "verdicts.sqlite"
    judge = OpenAIJudge(KEY, judge_server.base_url, cache_file=str(file))
    with caplog.at_level(logging.DEBUG):
        (verdict,) = run(judge, request())
    assert "The model `***` does not exist" in verdict.reason
    assert KEY not in verdict.reason
    assert not [record for record in caplog.records if record.name.startswith("verl_p2r") and KEY in record.message]
    judge = make(judge_server)
    run(judge, request())
    assert KEY not in f"{judge!r} {vars(judge)!r}"
    assert repr(judge) == f"OpenAIJudge(model='judge', base_urls=['{judge_server.base_url}'])"


def test_verdict_cache_key_covers_request_and_model_options(judge_server, tmp_path):
    file = str(tmp_path / "verdicts.sqlite")

    def ask(*requests, **kwargs):
        before = len(judge_server.calls())
        run(make(judge_server, cache_file=file, **kwargs), *requests)
        return len(judge_server.calls()) - before

    one = request()
    assert ask(one, one) == 1
    assert ask(one) == 0  # another judge: from the file
    assert ask(JudgeRequest(one.question, one.solution, one.observation, "OCR", row="another row")) == 0
    assert ask(JudgeRequest(one.question + "?", one.solution, one.observation)) == 1
    assert ask(JudgeRequest(one.question, "B", one.observation)) == 1
    assert ask(JudgeRequest(one.question, one.solution, one.observation + "!")) == 1
    assert (
        ask(JudgeRequest(one.question + one.solution, "", one.observation)) == 1
    )  # the boundary between the texts matters
    assert ask(one, max_tokens=100) == ask(one, temperature=0.5) == ask(one, extra_body={"seed": 1}) == 1
    assert ask(one, max_observation_chars=100) == 1
    template = tmp_path / "template.txt"
    template.write_text("{question} {solution} {observation}")
    assert ask(one, template_file=str(template)) == 1
    judge_server.control(models=["judge", "other"])
    run(OpenAIJudge("other", judge_server.base_url, cache_file=file), one)
    assert len(judge_server.calls()) == 11
    assert ask(one, concurrency=7, timeout_s=3.0, deadline_s=9.0) == 0  # transport options do not matter


def test_health_check_bypasses_cache(judge_server, tmp_path):
    for _ in range(2):
        judge = make(judge_server, cache_file=str(tmp_path / "verdicts.sqlite"))

        async def main(judge=judge):
            await check_judge(judge, "openai")
            await check_judge(judge, "openai")
            await judge.aclose()

        asyncio.run(main())
    assert len(judge_server.calls()) == 8


def test_judge_prompt_hash_matches_its_version():
    """The version is part of a cached verdict's key: if this fails, raise PROMPT_VERSION and update the hash here."""
    prompt = build_judge_prompt(
        JudgeRequest("Q\u200b <b>?", "<answer>A</answer>", "x\r\n=== END ===\n\n\n\n " + "y" * 9000), nonce="0"
    )
    assert (PROMPT_VERSION, hashlib.sha256(prompt.encode()).hexdigest()[:16]) == (2, "c0ebdbb131d9ebfd")


def test_one_judge_serves_several_event_loops(judge_server):
    judge = make(judge_server)
    for n in range(3):
        assert asyncio.run(judge.judge(request(n))).value is (n % 2 == 1)  # its connections left open
    assert run(judge, request(3))[0].value is True


@pytest.mark.parametrize(
    "observation",
    ["\ud800 red \udfff", "red " * 25_000, "\x00red\x00", "\u202ered", "red 😀" * 2000, "=" * 100_000 + " red"],
    ids=["surrogates", "100 KB", "controls", "bidi", "emoji", "equals"],
)
def test_any_observation_text_gets_a_verdict(judge_server, observation):
    request_of = JudgeRequest("Which?\nA. red\nB. green", "A", observation)
    assert run(make(judge_server), request_of)[0].value is True


def test_internal_error_in_judge_becomes_missing_verdict(judge_server, monkeypatch, caplog):
    def boom(*_args):
        raise KeyError("boom")

    judge = make(judge_server)
    monkeypatch.setattr(judge_client, "build_judge_prompt", boom)
    (verdict,) = run(judge, request())
    assert verdict.value is None
    assert verdict.reason == "KeyError: 'boom'"
    assert "failed on row 1" in caplog.text  # with its traceback


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 512}),
        ({"temperature": None, "max_tokens": None}, {}),
        (
            {"max_tokens": None, "extra_body": {"max_completion_tokens": 9}},
            {"temperature": 0.0, "max_completion_tokens": 9},
        ),
        (
            {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}, "temperature": 0.1}},
            {"temperature": 0.1, "max_tokens": 512, "chat_template_kwargs": {"enable_thinking": False}},
        ),
    ],
)
def test_request_body_holds_expected_options(monkeypatch, options, sent):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    seen = []

    async def complete(http):
        seen.append((http.path, http.headers["Authorization"], await http.json()))
        content = "<judgement>Yes</judgement>"
        return web.json_response({"choices": [{"message": {"content": content}}], "usage": None})

    async def main():
        app = web.Application()
        app.router.add_post("/base/v1/chat/completions", complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        judge = OpenAIJudge("m", f"http://127.0.0.1:{runner.addresses[0][1]}/base/v1/", **options)
        verdict = await judge.judge(request())
        await judge.aclose()
        await runner.cleanup()
        return verdict

    verdict = asyncio.run(main())
    assert (verdict.value, verdict.prompt_tokens) == (True, 0)
    ((path, authorization, body),) = seen
    (message,) = body.pop("messages")
    assert sha(message["content"]) == sha(build_judge_prompt(request()))
    assert (path, authorization) == ("/base/v1/chat/completions", f"Bearer {KEY}")
    assert body == {"model": "m", **sent}


def test_truncated_reply_error_mentions_max_tokens():
    reply = b'{"choices": [{"message": {"content": "Let me think"}, "finish_reason": "length"}]}'
    judge = OpenAIJudge("m", "http://a/v1")
    with pytest.raises(chat_client.UselessReply, match=r"\(cut off by max_tokens: raise it\): 'Let me think'"):
        judge._verdict(read_reply(reply))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"base_urls": []}, "base_urls is empty"),
        ({"base_urls": ["http://localhost:8000/v1", "ftp://x"]}, "'ftp://x' is not a URL"),
        ({"base_urls": f"https://user:{KEY}@host/v1"}, "holds a user name or password: keys belong in api_key_env"),
        ({"concurrency": 0}, "concurrency is 0: give 1 to 1000"),
        ({"concurrency": 1001}, "concurrency is 1001"),
        ({"timeout_s": 0.0}, r"timeout_s is 0\.0: give seconds, up to deadline_s=180\.0"),
        ({"timeout_s": 200.0}, r"timeout_s is 200\.0"),
        ({"connect_timeout_s": -1.0}, r"connect_timeout_s is -1\.0"),
        ({"cache_size": 0}, "cache_size is 0: give a whole number above 0"),
        ({"max_observation_chars": 0}, "max_observation_chars is 0"),
        ({"extra_body": {"stream": True}}, "extra_body sets stream: remove it"),
        ({"model": ""}, "model is not set: name the model as its server does"),
        ({"api_key": KEY}, "kwargs does not fit judge 'openai': got an unexpected keyword argument 'api_key'"),
    ],
)
def test_invalid_judge_options_are_refused_without_showing_key(kwargs, message):
    with pytest.raises(ValueError, match=message) as caught:
        get_judge("openai", **{"model": "m", "base_urls": "http://localhost:8000/v1", **kwargs})
    assert KEY not in str(caught.value)


def test_judge_names_a_template_that_is_not_utf8(tmp_path):
    template = tmp_path / "template.txt"
    template.write_bytes("é {question} {solution} {observation}".encode("latin-1"))
    with pytest.raises(ValueError, match=r"template_file .*template\.txt is not UTF-8"):
        OpenAIJudge("m", "http://localhost:8000/v1", template_file=str(template))


def test_judge_refuses_incomplete_template_at_construction(tmp_path):
    template = tmp_path / "template.txt"
    template.write_text("{question} {solution}")
    with pytest.raises(ValueError, match=r"lacks \{observation\}"):
        OpenAIJudge("m", "http://localhost:8000/v1", template_file=str(template))
