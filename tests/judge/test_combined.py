# SPDX-License-Identifier: Apache-2.0
"""Combined judges: the rule of each by a truth table, members that fail, costs, options, and the health check."""

import asyncio
import itertools

import pytest
from judge_requests import request

from verl_p2r.judge import JudgeRequest, Verdict, check_judge, get_judge
from verl_p2r.judge.combined import named_judges

REQUEST = JudgeRequest("Which?", "A", "a red ball", row="row 3")


class Says:
    """Answers what it is built with; an exception is raised."""

    def __init__(self, value=None, probability=None, error=None, source="judge", **more):
        self.verdict = Verdict(value, f"I say {value}", source, 1, 10, 2, probability=probability, **more)
        self.error, self.gives_probabilities = error, probability is not None
        self.closed = 0

    async def judge(self, request):
        if self.error:
            raise ValueError(self.error)
        return self.verdict

    async def aclose(self):
        self.closed += 1


def members(*options, weights=()):
    weights = weights or [1.0] * len(options)
    made = [{"name": f"{__name__}:Says", "kwargs": one, "weight": w} for one, w in zip(options, weights, strict=True)]
    return dict(zip("abcdef", made, strict=False))


def verdict_of(name, *values, weights=(), **kwargs) -> Verdict:
    """The combined verdict of members that say True, False, None, or a probability."""
    options = [
        {"value": value >= 0.5, "probability": value} if isinstance(value, float) else {"value": value}
        for value in values
    ]
    return asyncio.run(get_judge(name, members=members(*options, weights=weights), **kwargs).judge(REQUEST))


@pytest.mark.parametrize("values", list(itertools.product([True, False, None], repeat=3)))
def test_a_member_without_a_verdict_counts_as_either_word(values):
    """All and any by their definition: the verdict that holds however the unknown ones are filled in, else none."""
    for name, rule in (("all", all), ("any", any), ("weighted", lambda filled: sum(filled) >= 1.5)):
        filled = itertools.product(*([True, False] if value is None else [value] for value in values))
        outcomes = {rule(one) for one in filled}
        expected = outcomes.pop() if len(outcomes) == 1 else None
        assert verdict_of(name, *values).value is expected, name


@pytest.mark.parametrize(
    ("name", "values", "value", "probability"),
    [
        ("all", (0.9, 0.6), True, 0.6),
        ("all", (0.9, 0.2), False, 0.2),
        ("all", (0.9, True), True, 0.9),  # a judge without probabilities counts as 1 or 0
        ("all", (0.2, None), False, None),  # decided, but P(Yes) is not known
        ("any", (0.1, 0.6), True, 0.6),
        ("any", (0.1, False), False, 0.1),
        ("any", (0.6, None), True, None),
        ("weighted", (0.9, 0.2), True, 0.55),
        ("weighted", (0.7, 0.2), False, 0.45),
    ],
)
def test_probabilities(name, values, value, probability):
    verdict = verdict_of(name, *values)
    assert (verdict.value, verdict.probability) == (value, pytest.approx(probability))


@pytest.mark.parametrize(
    ("values", "weights", "threshold", "value"),
    [
        ((True, False, False), (3, 1, 1), 0.5, True),  # 3 of 5
        ((True, False, False), (2, 1, 1), 0.75, False),  # 2 of 4
        ((True, True, True), (1, 1, 1), 1.0, True),
        ((True, None), (3, 1), 0.75, True),  # 3 of 4 or 4 of 4
        ((True, None), (3, 1), 0.8, None),  # 3 of 4 would not do
        ((False, None), (3, 1), 0.5, False),  # 1 of 4 at most
        ((None, None), (1, 1), 0.5, None),
    ],
)
def test_weights_by_hand(values, weights, threshold, value):
    verdict = verdict_of("weighted", *values, weights=list(map(float, weights)), threshold=threshold)
    assert verdict.value is value


def test_a_member_that_raises_is_marked_and_not_taken_for_a_no(caplog):
    judge = get_judge("any", members=members({"error": "the row lists no facts"}, {"value": True}))
    verdict = asyncio.run(judge.judge(REQUEST))
    assert (verdict.value, verdict.members) == (True, (("a", None), ("b", True)))
    assert "a: no verdict, ValueError: the row lists no facts; b: Yes, I say True" in verdict.reason
    assert "the member a gave no verdict on row 3" in caplog.text
    judge = get_judge("all", members=members({"error": "broken"}, {"value": True}))
    assert asyncio.run(judge.judge(REQUEST)).value is None


def test_what_a_verdict_cost_is_the_sum():
    verdict = verdict_of("all", True, False)
    assert (verdict.retries, verdict.prompt_tokens, verdict.completion_tokens, verdict.source) == (2, 20, 4, "judge")
    kept = {"value": True, "source": "cache"}
    assert asyncio.run(get_judge("all", members=members(kept, kept)).judge(REQUEST)).source == "cache"
    assert asyncio.run(get_judge("all", members=members(kept, {"value": True})).judge(REQUEST)).source == "judge"


def test_why_there_is_no_verdict_is_the_members_reason():
    yes, refused, odd = {"value": True}, {"status": 401}, {"useless": True}
    for name, given, expected in (
        ("all", (yes, refused), (None, 401, False)),
        ("all", (yes, odd), (None, None, True)),
        ("any", (yes, refused, odd), (True, None, False)),
        ("all", (refused, odd), (None, None, False)),  # they disagree about why
        ("all", (refused, refused), (None, 401, False)),
    ):
        verdict = asyncio.run(get_judge(name, members=members(*given)).judge(REQUEST))
        assert (verdict.value, verdict.status, verdict.useless) == expected


def test_only_judges_that_all_give_probabilities_give_one():
    soft, hard = {"value": True, "probability": 0.7}, {"value": True}
    assert get_judge("all", members=members(soft, soft)).gives_probabilities
    assert not get_judge("all", members=members(soft, hard)).gives_probabilities
    assert get_judge("weighted", members=members(hard, hard)).gives_probabilities  # the mean of two is one


def model(server, **more):
    return {"name": "openai", "kwargs": {"model": "judge", "base_urls": server.base_url, **more}}


def test_two_models_over_http_and_one_inside_another(make_judge_server):
    lenient, strict = make_judge_server(), make_judge_server()
    strict.control(yes_when="never")
    both = {"name": "any", "kwargs": {"members": {"lenient": model(lenient), "strict": model(strict)}}}
    judge = get_judge("all", members={"both": both, "token": model(lenient, reply="single_token")})

    async def main():
        verdict = await judge.judge(request(1))
        again = await judge.judge(request(1))
        fresh = await judge.ask_anew(request(1))
        await judge.aclose()
        return verdict, again, fresh

    verdict, again, fresh = asyncio.run(main())
    assert (verdict.value, verdict.members) == (True, (("both", True), ("token", True)))
    assert "lenient: Yes" in verdict.reason
    assert "strict: No" in verdict.reason
    assert [v.source for v in (verdict, again, fresh)] == ["judge", "cache", "judge"]
    assert (len(lenient.calls()), len(strict.calls())) == (4, 2)


def test_a_server_that_is_down_leaves_the_others_to_decide(make_judge_server):
    up, down = make_judge_server(), make_judge_server()
    down.kill()
    quick = {"connect_timeout_s": 0.5, "timeout_s": 0.5, "deadline_s": 1.0}
    judge = get_judge("all", members={"up": model(up), "down": model(down, **quick)})

    async def main():
        verdicts = [await judge.judge(request(number)) for number in (1, 2)]
        await judge.aclose()
        return verdicts

    suffices, does_not = asyncio.run(main())
    assert (suffices.value, suffices.members) == (None, (("up", True), ("down", None)))
    assert (does_not.value, does_not.members) == (False, (("up", False), ("down", None)))


def test_the_health_check_names_the_member(make_judge_server):
    good, bad = make_judge_server(), make_judge_server()
    bad.control(yes_when="")  # says Yes to everything
    judge = get_judge("any", members={"facts": {"name": "facts"}, "good": model(good), "bad": model(bad)})
    with pytest.raises(RuntimeError, match=r"the judge 'any, member bad' fails its health check.*the known No got Yes"):
        asyncio.run(check_judge(judge, "any"))
    judge = get_judge("any", members={"facts": {"name": "facts"}, "good": model(good)})
    asyncio.run(check_judge(judge, "any"))  # the judge facts, which reads no other rows, is not asked


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "members lists no judge: a combined judge needs two or more"),
        ({"a": {"name": "facts"}}, "members lists a: a combined judge needs two or more"),
        ({"a": "facts"}, r"members\.a is 'facts': give \{name: NAME"),
        ({"a": {"kwargs": {}}}, r"members\.a is .*: give \{name: NAME"),
        ({"a": {"name": ""}}, r"members\.a\.name is empty"),
        ({"a": {"name": "facts", "wieght": 2}}, r"members\.a\.wieght does not exist: did you mean weight"),
        ({"a": {"name": "facts", "weight": 0}}, r"members\.a\.weight is 0\.0: give a positive number"),
        ({"a": {"name": "fact"}}, r"member a: .*members\.a\.name 'fact' is unknown"),
        ({"a": {"name": "openai"}}, r"member a: .*missing a required argument: 'model'"),
        ({"a": {"name": "openai", "kwargs": {"model": None, "base_urls": "http://a"}}}, "member a: .*model is not set"),
        ({"A b": {"name": "facts"}}, "name members in lower case letters"),
        ({"sum_up": {"name": "facts"}}, "the name holds 'sum'"),
    ],
)
def test_members_that_cannot_be_used(given, message):
    with pytest.raises(ValueError, match=message):
        get_judge("all", members=given)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1, float("nan")])
def test_thresholds_that_cannot_be_used(threshold):
    with pytest.raises(ValueError, match=r"threshold is .*: give a number above 0 and at most 1"):
        get_judge("weighted", members=members({}, {}), threshold=threshold)


def test_the_names_of_all_judges_at_any_depth():
    inner = {"members": {"a": {"name": "verl"}, "b": {"name": "facts"}, "broken": 3}}
    tree = {"members": {"c": {"name": "any", "kwargs": inner}, "d": {"name": "openai"}}}
    assert [name for name, _ in named_judges("all", tree)] == ["all", "any", "verl", "facts", "openai"]
    assert list(named_judges("openai", {"members": None})) == [("openai", {"members": None})]
