# SPDX-License-Identifier: Apache-2.0
"""The judge `openai` against a real HTTP server that fails on command: every call ends in a verdict or a marked row."""

import asyncio
import email.utils
import hashlib
import logging
import time
from collections import Counter

import pytest
from aiohttp import web
from judge_server import sha

from verl_p2r.chat import client as chat_client
from verl_p2r.chat import endpoints
from verl_p2r.chat.addresses import Route, read_addresses
from verl_p2r.chat.errors import read_retry_after
from verl_p2r.chat.reply import read_reply
from verl_p2r.judge import PROMPT_VERSION, JudgeRequest, build_judge_prompt, check_judge, get_judge
from verl_p2r.judge import openai_judge as judge_client
from verl_p2r.judge.openai_judge import OpenAIJudge

KEY = "sk-0123456789abcdef"


def request(number: int = 1, colour: str | None = None) -> JudgeRequest:
    """Suffices when the number is odd."""
    colour = colour or ("red" if number % 2 else "blue")
    question = "Which colour is the ball?\nOptions:\nA. red\nB. green"
    return JudgeRequest(question, "<answer>A</answer>", f"Ball {number} is {colour}.", row=f"row {number}")


def run(judge: OpenAIJudge, *requests: JudgeRequest):
    """The verdicts of requests made at once, and the connections closed."""

    async def main():
        try:
            return await asyncio.gather(*map(judge.judge, requests))
        finally:
            await judge.aclose()

    return asyncio.run(main())


def make(*servers, **kwargs) -> OpenAIJudge:
    quick = {"connect_timeout_s": 1.0, "timeout_s": 5.0, "deadline_s": 20.0}
    return OpenAIJudge("judge", [server.base_url for server in servers], **{**quick, **kwargs})


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(chat_client, "_BACKOFF_S", 0.01)


def test_a_yes_and_a_no_with_what_they_cost(judge_server):
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
def test_what_may_pass_is_asked_again(judge_server, fault):
    judge_server.control(sequence=[fault])
    (verdict,) = run(make(judge_server, timeout_s=0.5, connect_timeout_s=0.5), request())
    assert (verdict.value, verdict.retries) == (True, 1)
    outcome = {"hang": "gone", "no_judgement": "no_judgement"}.get(fault, fault)
    assert [call.outcome for call in judge_server.calls()] == [outcome, "ok"]


@pytest.mark.parametrize("fault", ["no_judgement", "contradiction"])
def test_a_model_that_never_judges_is_asked_twice(judge_server, fault):
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
def test_what_cannot_pass_is_asked_once_and_said_clearly(judge_server, caplog, monkeypatch, status, remedy):
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


def test_a_key_that_is_not_set_is_named(judge_server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("MY_KEY", raising=False)
    judge_server.control(api_key=KEY)
    (verdict,) = run(make(judge_server, api_key_env="MY_KEY"), request())
    assert "the API key in $MY_KEY, which is not set in this process" in verdict.reason
    monkeypatch.setenv("MY_KEY", KEY)
    assert run(make(judge_server, api_key_env="MY_KEY"), request())[0].value is True


def test_a_key_shows_nowhere(judge_server, monkeypatch, caplog, tmp_path):
    """The server echoes the model's name, which here is the key: as a server may that quotes a wrong key."""
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


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status", ["429", "503"])
def test_retry_after_is_honoured_by_every_call(judge_server, status, form):
    wait = 1.0 if form == "seconds" else email.utils.formatdate(time.time() + 3, usegmt=True)
    judge_server.control(sequence=[status], retry_after=wait, latency=0.0)
    verdicts = run(make(judge_server, concurrency=1), *(request(n) for n in range(4)))
    assert [v.value for v in verdicts] == [False, True, False, True]
    first, *others = judge_server.calls()
    assert first.outcome == status
    assert min(call.start for call in others) - first.end > (0.99 if form == "seconds" else 0.5)


def test_a_server_that_asks_for_an_hour_again_and_again_is_asked_no_more(judge_server):
    """Once more after a quarter of the deadline, then not before the deadline's length is over."""
    judge_server.control(shares={"429": 1.0}, retry_after=3600)
    verdicts = run(make(judge_server, concurrency=1, deadline_s=4.0, timeout_s=4.0), *(request(n) for n in range(20)))
    assert all(v.value is None and "HTTP 429" in v.reason and "(Retry-After: 3600)" in v.reason for v in verdicts)
    assert len(judge_server.calls()) == 2


@pytest.mark.parametrize("wait", [3600, "1e308", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_asks_for_an_hour_once_is_soon_asked_again(judge_server, wait):
    judge_server.control(sequence=["429"], retry_after=wait)
    verdicts = run(make(judge_server, concurrency=1, deadline_s=4.0, timeout_s=4.0), *(request(n) for n in range(4)))
    assert [v.value for v in verdicts] == [False, True, False, True]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("0", 0.0), ("2.5", 2.5), ("-3", 0.0), ("nan", 0.0), ("inf", 0.0), ("", 0.0), (None, 0.0)],
)
def test_retry_after_as_it_may_come(header, seconds):
    assert read_retry_after(header) == seconds


def test_retry_after_as_a_date():
    assert 58 < read_retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
    assert read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_a_server_that_asks_for_no_wait_is_not_hammered(judge_server, monkeypatch):
    monkeypatch.setattr(chat_client, "_pause_s", lambda failures: 0.2)
    judge_server.control(shares={"429": 1.0}, retry_after=0)
    (verdict,) = run(make(judge_server, deadline_s=1.0, timeout_s=1.0), request())
    assert verdict.value is None
    assert 2 <= len(judge_server.calls()) <= 6  # one each 0.2 s


def test_calls_that_fail_together_count_as_one(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(endpoints.time, "monotonic", lambda: clock[0])
    endpoint = endpoints.Endpoint(Route(*read_addresses("http://a/v1", "the judge")))
    assert [endpoint.unreachable() for _ in range(5)] == [0.5] * 5
    clock[0] += 1
    assert [endpoint.unreachable() for _ in range(5)] == [1.0] * 5
    for _ in range(20):
        clock[0] += 100
        endpoint.unreachable()
    assert endpoint.rests_until - clock[0] == 15.0


def test_a_server_that_never_replies_costs_its_deadline_and_no_more(judge_server):
    judge_server.control(shares={"hang": 1.0})
    judge = make(judge_server, timeout_s=0.3, connect_timeout_s=0.3, deadline_s=1.0)
    begun = time.monotonic()
    verdicts = run(judge, *(request(n) for n in range(8)))
    assert time.monotonic() - begun < 5
    for verdict in verdicts:
        assert verdict.value is None
        assert verdict.reason.startswith("no usable reply within 1 s; last failure: ")
        assert verdict.reason.endswith("did not reply within 0.3 s")


def test_calls_in_flight_are_bounded_and_connections_reused(judge_server):
    judge_server.control(latency=0.05)
    verdicts = run(make(judge_server, concurrency=8), *(request(n) for n in range(48)))
    assert [v.value for v in verdicts] == [n % 2 == 1 for n in range(48)]
    calls = judge_server.calls()
    moments = sorted([(call.start, 1) for call in calls] + [(call.end, -1) for call in calls])
    flying = most = 0
    for _, step in moments:
        flying += step
        most = max(most, flying)
    assert most == 8
    assert len({call.peer for call in calls}) <= 8


def test_several_servers_share_the_load(make_judge_server):
    servers = [make_judge_server() for _ in range(2)]
    for server in servers:
        server.control(latency=0.05)
    verdicts = run(make(*servers, concurrency=16), *(request(n) for n in range(64)))
    assert [v.value for v in verdicts] == [n % 2 == 1 for n in range(64)]
    assert [24 <= len(server.calls()) <= 40 for server in servers] == [True, True]


def test_a_slow_server_gets_less(make_judge_server):
    quick, slow = make_judge_server(), make_judge_server()
    quick.control(latency=0.02)
    slow.control(latency=0.4)
    run(make(quick, slow, concurrency=8), *(request(n) for n in range(100)))
    assert len(slow.calls()) < 30 < 70 < len(quick.calls())


@pytest.mark.parametrize("fault", ["500", "hang", "404"])
def test_a_call_moves_on_to_another_server(make_judge_server, fault):
    """But not from one that refuses it: what it says should be seen."""
    good, bad = make_judge_server(), make_judge_server()
    bad.control(shares={fault: 1.0})
    judge = make(good, bad, timeout_s=0.5, connect_timeout_s=0.5, concurrency=1)
    verdicts = run(judge, *(request(n) for n in range(8)))
    assert bad.calls()
    for n, verdict in enumerate(verdicts):
        assert verdict.value is (n % 2 == 1) or (fault == "404" and "has no model" in verdict.reason)
    if fault != "404":
        assert max(v.retries for v in verdicts) == 1


def test_a_dead_server_is_left_and_taken_back(make_judge_server, monkeypatch):
    monkeypatch.setattr(endpoints, "_REST_S", 0.2)
    good, dead = make_judge_server(), make_judge_server()
    dead.kill()
    judge = make(good, dead, concurrency=4)

    async def main():
        first = await asyncio.gather(*(judge.judge(request(n)) for n in range(40)))
        dead.start()
        await asyncio.sleep(2.0)
        second = await asyncio.gather(*(judge.judge(request(n)) for n in range(40, 80)))
        await judge.aclose()
        return first, second

    first, second = asyncio.run(main())
    assert [v.value for v in first + second] == [n % 2 == 1 for n in range(80)]
    assert sum(v.retries for v in first) <= 8  # the dead one was tried once a rest, not once a call
    assert len(dead.calls()) > 0


def test_a_server_that_dies_and_comes_back_loses_nothing(judge_server, monkeypatch):
    monkeypatch.setattr(endpoints, "_REST_S", 0.1)
    judge_server.control(latency=0.2)
    judge = make(judge_server, concurrency=16)

    async def main():
        verdicts = asyncio.gather(*(judge.judge(request(n)) for n in range(64)))
        await asyncio.sleep(0.3)
        judge_server.kill()
        await asyncio.sleep(0.5)
        judge_server.start()
        done = await verdicts
        await judge.aclose()
        return done

    assert [v.value for v in asyncio.run(main())] == [n % 2 == 1 for n in range(64)]


def test_two_thousand_calls_through_every_fault_lose_nothing_and_count_nothing_twice(judge_server):
    """The order of replies is shuffled by jitter; each request comes twice, from two rollouts that say the same."""
    faults = ["500", "429", "drop", "cut", "not_http", "junk", "truncated", "html", "empty_choices", "null_content"]
    judge_server.control(jitter=0.05, shares=dict.fromkeys([*faults, "no_judgement"], 0.02), retry_after=0)
    judge = make(judge_server, concurrency=64)
    verdicts = run(judge, *(request(n // 2) for n in range(2000)))
    assert len(verdicts) == 2000
    for n, verdict in enumerate(verdicts):
        assert verdict.value is (n // 2 % 2 == 1) or (verdict.value is None and "no judgement" in verdict.reason)
        assert verdict.value is verdicts[n // 2 * 2].value  # one verdict for both
    unjudged = sum(v.value is None for v in verdicts[::2])
    assert unjudged < 10  # of 1000: two replies in a row without a judgement
    calls = judge_server.calls()
    paid = Counter(call.prompt for call in calls if call.outcome == "ok")
    assert set(paid.values()) == {1}
    assert len(paid) == 1000 - unjudged
    assert sum(v.retries for v in verdicts[::2]) == len(calls) - 1000
    assert sum(v.source == "cache" for v in verdicts) == 1000 - unjudged


def test_what_the_cache_tells_apart(judge_server, tmp_path):
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
    assert ask(JudgeRequest(one.question + one.solution, "", one.observation)) == 1  # where a text ends counts
    assert ask(one, max_tokens=100) == ask(one, temperature=0.5) == ask(one, extra_body={"seed": 1}) == 1
    assert ask(one, max_observation_chars=100) == 1
    template = tmp_path / "template.txt"
    template.write_text("{question} {solution} {observation}")
    assert ask(one, template_file=str(template)) == 1
    judge_server.control(models=["judge", "other"])
    run(OpenAIJudge("other", judge_server.base_url, cache_file=file), one)
    assert len(judge_server.calls()) == 11
    assert ask(one, concurrency=7, timeout_s=3.0, deadline_s=9.0) == 0  # how it is asked does not


def test_the_health_check_is_never_answered_from_the_cache(judge_server, tmp_path):
    for _ in range(2):
        judge = make(judge_server, cache_file=str(tmp_path / "verdicts.sqlite"))

        async def main(judge=judge):
            await check_judge(judge, "openai")
            await check_judge(judge, "openai")
            await judge.aclose()

        asyncio.run(main())
    assert len(judge_server.calls()) == 8


def test_the_prompt_changes_only_with_its_version():
    """A cached verdict is found by the version: when this fails, raise PROMPT_VERSION and write the new hash here."""
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
def test_any_text_gets_a_verdict(judge_server, observation):
    request_of = JudgeRequest("Which?\nA. red\nB. green", "A", observation)
    assert run(make(judge_server), request_of)[0].value is True


def test_a_fault_of_our_own_loses_no_rollout(judge_server, monkeypatch, caplog):
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
def test_what_is_sent(monkeypatch, options, sent):
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


def test_a_reply_that_was_cut_off_says_so():
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
def test_bad_options_are_refused_and_name_no_key(kwargs, message):
    with pytest.raises(ValueError, match=message) as caught:
        get_judge("openai", **{"model": "m", "base_urls": "http://localhost:8000/v1", **kwargs})
    assert KEY not in str(caught.value)


def test_a_template_without_a_placeholder_is_refused_at_once(tmp_path):
    template = tmp_path / "template.txt"
    template.write_text("{question} {solution}")
    with pytest.raises(ValueError, match=r"lacks \{observation\}"):
        OpenAIJudge("m", "http://localhost:8000/v1", template_file=str(template))
