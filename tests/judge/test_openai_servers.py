# SPDX-License-Identifier: Apache-2.0
"""The judge `openai` with slow, failing and several servers: waits, retries, load, and no lost verdicts."""

import asyncio
import email.utils
import time
from collections import Counter

import pytest
from judge_requests import make, request, run

from verl_p2r.chat import client as chat_client
from verl_p2r.chat import endpoints
from verl_p2r.chat.addresses import Route, read_addresses
from verl_p2r.chat.errors import read_retry_after


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(chat_client, "_BACKOFF_S", 0.01)


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


def test_server_repeating_long_retry_after_is_not_asked_again(judge_server):
    """It is asked once more after a quarter of the deadline, then not again within the deadline."""
    judge_server.control(shares={"429": 1.0}, retry_after=3600)
    verdicts = run(make(judge_server, concurrency=1, deadline_s=4.0, timeout_s=4.0), *(request(n) for n in range(20)))
    assert all(v.value is None and "HTTP 429" in v.reason and "(Retry-After: 3600)" in v.reason for v in verdicts)
    assert len(judge_server.calls()) == 2


@pytest.mark.parametrize("wait", [3600, "1e308", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_server_with_one_long_retry_after_is_asked_again_soon(judge_server, wait):
    judge_server.control(sequence=["429"], retry_after=wait)
    verdicts = run(make(judge_server, concurrency=1, deadline_s=4.0, timeout_s=4.0), *(request(n) for n in range(4)))
    assert [v.value for v in verdicts] == [False, True, False, True]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("0", 0.0), ("2.5", 2.5), ("-3", 0.0), ("nan", 0.0), ("inf", 0.0), ("", 0.0), (None, 0.0)],
)
def test_retry_after_number_is_parsed(header, seconds):
    assert read_retry_after(header) == seconds


def test_retry_after_date_is_parsed():
    assert 58 < read_retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
    assert read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_retry_after_zero_still_backs_off(judge_server, monkeypatch):
    monkeypatch.setattr(chat_client, "_pause_s", lambda failures: 0.2)
    judge_server.control(shares={"429": 1.0}, retry_after=0)
    (verdict,) = run(make(judge_server, deadline_s=1.0, timeout_s=1.0), request())
    assert verdict.value is None
    assert 2 <= len(judge_server.calls()) <= 6  # one every 0.2 s


def test_simultaneous_failures_count_once_for_backoff(monkeypatch):
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


def test_silent_server_costs_at_most_the_deadline(judge_server):
    judge_server.control(shares={"hang": 1.0})
    judge = make(judge_server, timeout_s=0.3, connect_timeout_s=0.3, deadline_s=1.0)
    begun = time.monotonic()
    verdicts = run(judge, *(request(n) for n in range(8)))
    assert time.monotonic() - begun < 5
    for verdict in verdicts:
        assert verdict.value is None
        assert verdict.reason.startswith("no usable reply within 1 s; last failure: ")
        assert verdict.reason.endswith("did not reply within 0.3 s")


def test_concurrent_calls_are_limited_and_connections_reused(judge_server):
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


def test_slower_server_gets_fewer_calls(make_judge_server):
    quick, slow = make_judge_server(), make_judge_server()
    quick.control(latency=0.02)
    slow.control(latency=0.4)
    run(make(quick, slow, concurrency=8), *(request(n) for n in range(100)))
    assert len(slow.calls()) < 30 < 70 < len(quick.calls())


@pytest.mark.parametrize("fault", ["500", "hang", "404"])
def test_failed_call_moves_to_another_server(make_judge_server, fault):
    """A refusal is final even with several servers, so that its message is seen."""
    good, bad = make_judge_server(), make_judge_server()
    bad.control(shares={fault: 1.0})
    judge = make(good, bad, timeout_s=0.5, connect_timeout_s=0.5, concurrency=1)
    verdicts = run(judge, *(request(n) for n in range(8)))
    assert bad.calls()
    for n, verdict in enumerate(verdicts):
        assert verdict.value is (n % 2 == 1) or (fault == "404" and "has no model" in verdict.reason)
    if fault != "404":
        assert max(v.retries for v in verdicts) == 1


def test_dead_server_is_avoided_and_used_again_after_recovery(make_judge_server, monkeypatch):
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
    assert sum(v.retries for v in first) <= 8  # the dead server was tried once per rest, not once per call
    assert len(dead.calls()) > 0


def test_restarted_server_loses_no_verdict(judge_server, monkeypatch):
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


def test_2000_calls_with_faults_are_each_answered_and_counted_once(judge_server):
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
    assert unjudged < 10  # out of 1000: two consecutive replies without a judgement
    calls = judge_server.calls()
    paid = Counter(call.prompt for call in calls if call.outcome == "ok")
    assert set(paid.values()) == {1}
    assert len(paid) == 1000 - unjudged
    assert sum(v.retries for v in verdicts[::2]) == len(calls) - 1000
    assert sum(v.source == "cache" for v in verdicts) == 1000 - unjudged
