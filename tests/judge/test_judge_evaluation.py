# SPDX-License-Identifier: Apache-2.0
"""Measuring a judge: the shipped cases, a user's cases, the scores, and the command against a real server."""

import asyncio
import json
import math
import random
import re
from collections import Counter

import pytest
from typer.testing import CliRunner

from verl_p2r.accuracy import PROBLEM_TYPES
from verl_p2r.judge import FactsJudge, JudgeRequest, Verdict, build_judge_prompt, get_judge
from verl_p2r.judge.evaluation import Case, Result, cohens_kappa, evaluate, load_cases, percentile, score
from verl_p2r.judge.guards import rule_verdict
from verl_p2r.plugin.cli import app
from verl_p2r.settings import JudgeGuards

CASES = load_cases()
GOOD = {"problem_type": "OCR", "question": "What?", "solution": "X", "observation": "an X", "label": "Yes"}


def test_shipped_judge_cases_are_balanced_over_types_and_labels():
    assert len(CASES) >= 60
    counts = Counter((case.request.problem_type, case.label) for case in CASES)
    assert len(set(counts.values())) == 1
    assert {problem_type for problem_type, _ in counts} == set(PROBLEM_TYPES)


def test_shipped_judge_cases_cover_each_kind_of_difficulty():
    kinds = {label: Counter(case.kind for case in CASES if case.label is label) for label in (True, False)}
    assert min(kinds[False][k] for k in ("missing fact", "announces the answer", "contradicts", "another answer")) >= 5
    assert min(kinds[True][k] for k in ("small inference", "counting", "arithmetic")) >= 5
    assert not set(kinds[True]) & set(kinds[False])


def test_guards_reject_no_shipped_positive_case():
    guards = JudgeGuards(answer_only=True, copied_question=True)
    asked = [case.request for case in CASES if case.label]
    assert not [r.row for r in asked if rule_verdict(r, guards)]


def test_shipped_observations_reach_judge_unchanged():
    for case in CASES:
        assert f"=== OBSERVATION 0 ===\n{case.request.observation}\n===" in build_judge_prompt(case.request, nonce="0")


def test_facts_judge_agrees_with_labels_of_shipped_cases():
    listed = [case for case in CASES if case.request.facts]
    results = asyncio.run(evaluate(FactsJudge(), listed))
    assert {case.label for case in listed} == {True, False}
    assert [result.case.request.row for result in results if not result.right] == []


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def test_user_judge_cases_are_loaded(tmp_path):
    more = {"id": "mine", "kind": "hard", "facts": ["x"], "author": "me", "label": "No"}
    read = load_cases(write(tmp_path / "own.jsonl", GOOD, "", {**GOOD, **more}))
    assert [(case.request.row, case.label, case.kind) for case in read] == [
        ("line 1", True, ""),
        ("mine", False, "hard"),
    ]
    assert read[1].request.facts[0].state == "x"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 3: Expecting"),
        ("[1]", "line 3: contains a list: give a JSON object"),
        ({**GOOD, "question": " "}, "line 3: field question is ' ': give a text"),
        ({**GOOD, "observation": None}, "line 3: field observation is None"),
        ({**GOOD, "problem_type": "ocr"}, "line 3: field problem_type is 'ocr': give one of"),
        ({**GOOD, "label": "yes"}, """line 3: field label is 'yes': give "Yes" or "No\""""),
        ({**GOOD, "label": True}, "line 3: field label is True"),
        ({**GOOD, "facts": "x"}, "line 3: facts 'x': give a list"),
        ({**GOOD, "id": "line 1"}, "line 3: id 'line 1' occurs twice"),
    ],
)
def test_bad_cases_are_named_by_file_and_line(tmp_path, bad, message):
    path = write(tmp_path / "own.jsonl", GOOD, "", bad)
    with pytest.raises(ValueError) as caught:
        load_cases(path)
    assert f"{path}, {message}" in str(caught.value)


def test_empty_missing_or_undecodable_case_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"own.jsonl: contains no case"):
        load_cases(write(tmp_path / "own.jsonl"))
    with pytest.raises(ValueError, match=r"gone.jsonl: No such file"):
        load_cases(tmp_path / "gone.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe4"}')
    with pytest.raises(ValueError, match=r"latin.jsonl: byte 8 is not UTF-8"):
        load_cases(tmp_path / "latin.jsonl")


def kappa_by_table(pairs):
    """Compute kappa from the 2 × 2 table, as textbooks do."""
    total = len(pairs)
    table = {(a, b): sum(p == (a, b) for p in pairs) / total for a in (True, False) for b in (True, False)}
    observed = table[True, True] + table[False, False]
    expected = sum(
        (table[x, True] + table[x, False]) * (table[True, x] + table[False, x])  # what each rater says x
        for x in (True, False)
    )
    return (observed - expected) / (1 - expected)


def test_cohens_kappa_matches_confusion_table_formula():
    draw = random.Random(0)
    for _ in range(50):
        pairs = [(draw.random() < 0.5, draw.random() < 0.6) for _ in range(40)]
        assert cohens_kappa(pairs) == pytest.approx(kappa_by_table(pairs))
    assert cohens_kappa([(True, True), (False, False)]) == 1
    assert cohens_kappa([(True, False), (False, True)]) == -1
    assert cohens_kappa([(True, True), (False, True)]) == 0  # a judge that always says Yes
    assert math.isnan(cohens_kappa([(True, True)] * 3))
    assert math.isnan(cohens_kappa([]))


def test_percentiles_are_observed_values():
    values = [float(i) for i in range(1, 101)]
    assert [percentile(values[::-1], share) for share in (0.5, 0.95, 0.99, 1.0, 0.0)] == [50, 95, 99, 100, 1]
    assert percentile([7.0], 0.99) == 7
    assert math.isnan(percentile([], 0.5))


def test_missing_verdict_counts_as_wrong():
    request = JudgeRequest("q", "s", "o")
    results = [Result(Case(request, label), Verdict(None, "down"), 1.0) for label in (True, False)]
    summary = score([*results, Result(Case(request, True), Verdict(True, ""), 1.0)])
    assert (summary.accuracy, summary.no_verdict, summary.false_yes, summary.false_no) == (1 / 3, 2, 0, 0)
    assert results[0].row()["verdict"] is None
    assert math.isnan(score([]).accuracy)


class Slow:
    """A judge that answers earlier requests later."""

    def __init__(self):
        self.now = self.most = 0

    async def judge(self, request):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.02 / (1 + CASES.index(next(c for c in CASES if c.request is request))))
        self.now -= 1
        return Verdict(request.row.endswith("1"), request.row)


def test_evaluation_keeps_case_order_and_limits_concurrency():
    judge, done = Slow(), []
    results = asyncio.run(evaluate(judge, CASES, 7, done.append))
    assert [result.verdict.reason for result in results] == [case.request.row for case in CASES]
    assert judge.most == 7
    assert sorted(map(id, done)) == sorted(map(id, results))
    assert all(0 < result.seconds < 5 for result in results)


def test_exception_in_judge_stops_evaluation():
    class Broken:
        asked = 0

        async def judge(self, request):
            self.asked += 1
            await asyncio.sleep(0.001)
            raise ValueError("broken")

    judge = Broken()
    with pytest.raises(ValueError, match="broken"):
        asyncio.run(evaluate(judge, CASES, 2))
    assert judge.asked <= 4


def test_judge_evaluation_bypasses_verdict_cache(judge_server):
    judge = get_judge("openai", model="judge", base_urls=judge_server.base_url)

    async def twice():
        return await evaluate(judge, CASES[:5]) + await evaluate(judge, CASES[:5])

    assert {result.verdict.source for result in asyncio.run(twice())} == {"judge"}
    assert len(judge_server.calls()) == 10


def invoke(*arguments):
    result = CliRunner().invoke(app, ["judge-eval", *arguments], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_judge_eval_command_prints_and_writes_results(judge_server, tmp_path):
    judge_server.control(yes_when=r"\bred\b")
    cases = load_cases()
    out = tmp_path / "deep" / "results.jsonl"
    result = invoke(
        *("--model", "judge", "--base-url", judge_server.base_url, "--concurrency", "8"),
        *("--price-in", "1000", "--price-out", "0", "--out", str(out)),
    )
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["id"] for row in rows] == [case.request.row for case in cases]
    said = ["Yes" if re.search(r"\bred\b", case.request.observation) else "No" for case in cases]
    assert [row["verdict"] for row in rows] == said
    right = sum(word == ("Yes" if case.label else "No") for word, case in zip(said, cases, strict=True))
    total = next(line.split() for line in result.output.splitlines() if line.split()[:1] == ["all"])
    assert total[1:3] == [str(len(cases)), f"{right / len(cases):.3f}"]
    for problem_type in PROBLEM_TYPES:
        assert problem_type in result.output
    prompts = sum(len(build_judge_prompt(case.request).split()) for case in cases)  # how the server counts tokens
    assert f"tokens: {prompts} in, {3 * len(cases)} out" in result.output
    assert f"cost: {prompts / 1000:.6f}" in result.output
    assert "p99" in result.output
    assert "8 in flight" in result.output
    assert result.output.startswith(" problem type")  # no blank lines of a progress bar in a file


def test_the_command_compares_the_two_forms_of_the_reply(judge_server, tmp_path):
    judge_server.control(yes_when=r"\bred\b")
    out = tmp_path / "results.jsonl"
    result = invoke("--model", "judge", "--base-url", judge_server.base_url, "--reply", "both", "--out", str(out))
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    forms = ("explained", "single_token")
    assert [row["reply"] for row in rows] == [form for form in forms for _ in CASES]
    assert [row["verdict"] for row in rows[: len(CASES)]] == [row["verdict"] for row in rows[len(CASES) :]]
    table = {}
    for line in result.output.split("reply: single_token")[1].splitlines():
        if (cells := re.split(r"\s{2,}", line.strip())) and len(cells) == 3:
            table[cells[0]] = cells[1:]
    assert table["reply"] == list(forms)
    assert table["tokens out, per case"] == ["3.0", "1.0"]
    assert table["accuracy"][0] == table["accuracy"][1] == f"{sum(row['right'] for row in rows) / len(rows):.3f}"
    assert {"kappa", "no verdict", "latency, p50", "latency, p95", "tokens in, per case"} <= set(table)
    assert "reply: explained" in result.output


def test_the_option_reply_wins_over_the_judges_own(judge_server):
    kwargs = ("--kwargs", "{reply: explained}")
    result = invoke("--model", "judge", "--base-url", judge_server.base_url, *kwargs, "--reply", "single_token")
    assert f"{len(CASES)} out, " in result.output  # one token a case
    assert invoke("facts", "--reply", "single_token").exit_code == 2


def test_judge_eval_command_reports_why_verdicts_are_missing(judge_server):
    result = invoke("--model", "other", "--base-url", judge_server.base_url)
    assert result.exit_code == 1
    assert "100.0%" in result.output
    assert "no verdict:" in result.output
    assert "the server has no model 'other'" in result.output


def test_facts_judge_evaluation_requires_cases_with_facts(tmp_path):
    result = invoke("facts", "--cases", str(write(tmp_path / "own.jsonl", GOOD)))
    assert result.exit_code == 2
    assert "no case lists facts" in result.output


def test_judge_eval_command_runs_facts_on_cases_with_facts():
    result = invoke("facts")
    assert result.exit_code == 0
    listed = sum(case.request.facts is not None for case in CASES)
    assert f"{listed} cases in" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m"], "missing a required argument: 'base_urls'"),
        (["nobody"], "algorithm.p2r.judge.name 'nobody' is unknown"),
        (["--kwargs", "[1]"], "--kwargs is '[1]': give a mapping"),
        (["--kwargs", "{a: "], "expected"),
        (["facts", "--cases", "no/such.jsonl"], "no/such.jsonl: No such file or directory"),
        (["facts", "--kwargs", "{colour: red}"], "does not fit judge 'facts'"),
    ],
)
def test_judge_eval_command_refuses_invalid_arguments(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
