# SPDX-License-Identifier: Apache-2.0
"""The judge `openai` under load: thousands of calls to a real server that fails in every way it can.

The server's own journal is the reference: it says what came, what was answered, and when.
"""

import asyncio
import random
from collections import Counter, defaultdict

import pytest
from judge_server import sha

from verl_p2r.judge import JudgeRequest, build_judge_prompt, get_judge

SHARES = dict.fromkeys(("slow", "drop", "cut", "not_http", "500", "503", "429", "junk", "truncated", "html"), 0.02)
SHARES |= {"hang": 0.003, "empty_choices": 0.02, "null_content": 0.02}
QUESTION = "Does a red ball enter?\nOptions:\nA. yes\nB. no"


def requests(count: int, *doomed: str) -> list[JudgeRequest]:
    """Distinct observations; about half of them state red, and every 25th is always refused."""
    draw = random.Random(0)
    colours = [draw.choice(["red", "blue"]) for _ in range(count)]
    fates = [doomed[i // 25 % len(doomed)] if doomed and i % 25 == 7 else "rolling" for i in range(count)]
    return [
        JudgeRequest(
            QUESTION, "<answer>A</answer>", f"Ball {i} is {colour} and {fate}.", "multiple choice", None, str(i)
        )
        for i, (colour, fate) in enumerate(zip(colours, fates, strict=True))
    ]


def name(request: JudgeRequest) -> str:
    return sha(build_judge_prompt(request))


def ask_all(judge, asked, meanwhile=None):
    """Send all requests to the judge at once while `meanwhile` runs."""

    async def main():
        task = asyncio.create_task(meanwhile()) if meanwhile else None
        verdicts = await asyncio.gather(*(judge.judge(request) for request in asked))
        if task:
            await task
        await judge.aclose()
        return verdicts

    return asyncio.run(main())


@pytest.mark.slow
def test_thousands_of_calls_with_every_fault_get_correct_verdicts(judge_server):
    """3,000 calls about 1,500 observations: each gets the verdict on its own text, or is marked if there is none."""
    judge_server.control(
        latency=0.01,
        jitter=0.03,
        yes_when=r"\bred\b",
        shares=SHARES,
        rules=[{"contains": "forbidden", "fault": "400"}, {"contains": "vague", "fault": "no_judgement"}],
        slow=0.2,
        retry_after=0.02,
    )
    unique = requests(1500, "forbidden", "vague")
    asked = unique * 2
    random.Random(1).shuffle(asked)
    judge = get_judge(
        "openai", model="judge", base_urls=judge_server.base_url, concurrency=128, timeout_s=6.0, deadline_s=60.0
    )
    verdicts = ask_all(judge, asked)
    calls = judge_server.calls()
    by_prompt = defaultdict(list)
    for call in calls:
        by_prompt[call.prompt].append(call)
    given = defaultdict(list)
    for request, verdict in zip(asked, verdicts, strict=True):
        given[request].append(verdict)

    marked = 0
    for request in unique:
        outcomes = Counter(call.outcome for call in by_prompt[name(request)])
        first, second = sorted(given[request], key=lambda verdict: verdict.source, reverse=True)
        answered = outcomes["ok"] + outcomes["slow"]
        if "forbidden" in request.observation:  # no retry of a 400, and nothing else happens to such a prompt
            assert set(outcomes) == {"400"}, request
        if first.value is None:
            marked += 1
            assert second.value is None
            assert answered == 0, (request, outcomes)
            assert first.reason
            continue
        assert first.value is second.value is ("red" in request.observation), request
        assert (first.source, second.source) == ("judge", "cache")
        assert answered == 1, (request, outcomes)
        assert sum(outcomes.values()) == first.retries + 1
        assert (second.retries, second.prompt_tokens) == (0, 0)
    assert set(by_prompt) == {name(request) for request in unique}
    assert 60 <= marked <= 75  # the 60 that are always refused, and very few others
    happened = {call.outcome for call in calls}
    assert {*SHARES, "ok", "400", "no_judgement"} - happened <= {"hang"}
    assert "gone" in happened  # the client left the calls that hang
    order = [call.prompt for call in sorted(calls, key=lambda call: call.end)]
    assert order != [call.prompt for call in calls]
    assert most_in_flight(calls) <= 128


def most_in_flight(calls) -> int:
    """How many calls the server held at once."""
    events = sorted([(call.start, 1) for call in calls] + [(call.end, -1) for call in calls])
    now = most = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return most


@pytest.mark.slow
def test_restarted_server_loses_no_verdict(judge_server):
    judge_server.control(latency=0.05, yes_when=r"\bred\b")
    asked = requests(1000)
    judge = get_judge(
        "openai", model="judge", base_urls=judge_server.base_url, concurrency=32, timeout_s=3.0, deadline_s=30.0
    )

    async def die_twice():
        for seen in (200, 600):
            while len(await asyncio.to_thread(judge_server.calls)) < seen:
                await asyncio.sleep(0.05)
            await asyncio.to_thread(judge_server.kill)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(judge_server.start)

    verdicts = ask_all(judge, asked, die_twice)
    assert [verdict.value for verdict in verdicts] == ["red" in request.observation for request in asked]
    calls = judge_server.calls()
    assert 2 <= sum(call.end == float("inf") for call in calls) <= 64  # in flight when it died, and asked again
    answered = Counter(call.prompt for call in calls if call.outcome == "ok")
    assert set(answered) == {name(request) for request in asked}
    assert answered.total() - len(asked) <= 64  # answers lost when the server died


@pytest.mark.slow
def test_dead_server_leaves_every_row_without_verdict(judge_server):
    judge_server.control(yes_when=r"\bred\b")
    judge = get_judge(
        "openai", model="judge", base_urls=judge_server.base_url, connect_timeout_s=1.0, timeout_s=1.0, deadline_s=1.5
    )
    judge_server.kill()
    verdicts = ask_all(judge, requests(16))
    assert [verdict.value for verdict in verdicts] == [None] * 16
    assert all(judge_server.base_url in verdict.reason for verdict in verdicts)


@pytest.mark.slow
def test_one_of_two_servers_dies_and_the_other_takes_over(make_judge_server):
    servers = [make_judge_server(), make_judge_server()]
    for server in servers:
        server.control(latency=0.02, yes_when=r"\bred\b")
    asked = requests(600)
    judge = get_judge("openai", model="judge", base_urls=[s.base_url for s in servers], concurrency=32)

    async def one_dies():
        while len(await asyncio.to_thread(servers[0].calls)) < 100:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(servers[0].kill)

    verdicts = ask_all(judge, asked, one_dies)
    assert [verdict.value for verdict in verdicts] == ["red" in request.observation for request in asked]
    shares = [sum(call.outcome == "ok" for call in server.calls()) for server in servers]
    assert min(shares) >= 50  # both worked
    assert shares[1] > shares[0]


@pytest.mark.slow
def test_many_callers_with_same_text_share_one_call(judge_server):
    """A group's rollouts often say the same: 1,000 callers of ten texts while the first call of each is on its way."""
    judge_server.control(latency=0.2, yes_when=r"\bred\b")
    unique = requests(10)
    judge = get_judge("openai", model="judge", base_urls=judge_server.base_url, concurrency=4)
    verdicts = ask_all(judge, unique * 100)
    assert [verdict.value for verdict in verdicts] == ["red" in request.observation for request in unique] * 100
    assert Counter(call.prompt for call in judge_server.calls()) == {name(request): 1 for request in unique}
    assert Counter(verdict.source for verdict in verdicts) == {"judge": 10, "cache": 990}
