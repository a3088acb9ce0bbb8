# SPDX-License-Identifier: Apache-2.0
"""Step 3: the judge of training, asked about records."""

import asyncio
import json

import pytest
from judge_server import sha
from pipeline_records import OPTIONS, write_image
from release_files import lines_of, release_record, write_lines
from typer.testing import CliRunner

from data_tools.cli import app
from data_tools.steps.asking import NobodyReplies
from data_tools.steps.judge import JudgeStepSettings, judge, request_of
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Record
from verl_p2r.judge import KNOWN_REQUESTS, build_judge_prompt


def raw(number: int, observation: str | None, **changes) -> dict:
    record = release_record(number, problem=f"Which colour has ball {number}?\n", options=OPTIONS, **changes)
    return {**record, "observation": observation, "process": None, "output": None, "select": None}


def settings(server, **changes) -> JudgeStepSettings:
    kwargs = {"model": "judge", "base_urls": server.base_url, "timeout_s": 5.0, "deadline_s": 6.0}
    return JudgeStepSettings(kwargs={**kwargs, **changes.pop("kwargs", {})}, concurrency=8, **changes)


def run(tmp_path, server, raws, share=0.01, **changes):
    file = write_lines(tmp_path / "in.jsonl", raws)
    return judge([file], tmp_path / "out", settings(server, **changes), max_reject_share=share)


def test_judge_step_keeps_records_with_yes_verdict(tmp_path, judge_server):
    raws = [raw(i, f"Ball {i} is {'red' if i % 3 else 'blue'}.") for i in range(9)]
    report = run(tmp_path, judge_server, raws)
    assert (report.read, report.written, report.failed) == (9, 6, False)
    assert report.dropped == {"observation does not suffice": 3}
    kept = lines_of(tmp_path / "out" / "part-00000.jsonl")
    assert all(line["select"] is True for line in kept)
    assert kept[0]["verdict"] == {"value": True, "reason": "As asked.\n<judgement>Yes</judgement>", "source": "judge"}
    dropped = lines_of(tmp_path / "out" / "dropped.jsonl")
    assert [line["problem_id"] for line in dropped] == ["0", "3", "6"]
    assert dropped[0]["dropped"]["message"] == "As asked.\n<judgement>No</judgement>"
    assert dropped[0]["select"] is False


def test_judge_step_sends_health_check_then_training_prompt(tmp_path, judge_server):
    raws = [raw(1, "Ball 1 is red.")]
    run(tmp_path, judge_server, raws)
    asked = [call.prompt for call in judge_server.calls()]
    assert set(asked[:2]) == {sha(build_judge_prompt(request)) for request in KNOWN_REQUESTS.values()}
    request = request_of(Record.parse(raws[0]))
    assert request.question == "Which colour has ball 1?\nOptions:\n" + "".join(f"{o}\n" for o in OPTIONS)
    assert asked[2:] == [sha(build_judge_prompt(request))]


def test_the_visual_judge_is_shown_the_records_medium(tmp_path, judge_server):
    write_image(tmp_path / "red.png", "red")
    raws = [raw(i, f"Ball {i} is {'red' if i else 'blue'}.", data_type="image", path="red.png") for i in range(2)]
    file = write_lines(tmp_path / "in.jsonl", raws)
    report = judge([file], tmp_path / "out", settings(judge_server, name="visual"), root=tmp_path)
    assert (report.written, report.dropped) == (1, {"observation does not suffice": 1})
    blind = judge([file], tmp_path / "blind", settings(judge_server, name="visual"), max_reject_share=1.0)
    assert blind.written == 0  # without the folder of the media there is nothing to see


def test_judge_step_asks_once_per_observation_and_reuses_verdicts(tmp_path, judge_server):
    raws = [{**raw(1, "Ball 1 is red."), "problem_id": f"id {i}"} for i in range(10)]
    assert run(tmp_path, judge_server, raws).written == 10
    assert len(judge_server.calls()) == 3  # the two known ones, and one
    manifest = (tmp_path / "out" / "manifest.json").read_bytes()
    assert run(tmp_path, judge_server, raws).written == 10
    assert len(judge_server.calls()) == 3
    assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest
    assert "base_urls" not in manifest.decode()


def test_missing_verdict_rejects_record_until_next_run(tmp_path, judge_server):
    raws = [raw(i, f"Ball {i} is red.") for i in range(6)]
    judge_server.control(rules=[{"contains": "Ball 4", "fault": "no_judgement"}])
    report = run(tmp_path, judge_server, raws, share=0.5)
    assert (report.written, report.rejected) == (5, {"useless reply": 1})
    (reject,) = lines_of(tmp_path / "out" / "rejects.jsonl")
    assert (reject["record"], reject["line"]) == ("4", 5)
    assert "no judgement in the reply" in reject["message"]
    judge_server.control()
    assert run(tmp_path, judge_server, raws).written == 6


@pytest.mark.parametrize("fault", ["401", "407", "308"])
def test_server_refusing_every_request_stops_step_at_once(tmp_path, judge_server, fault):
    judge_server.control(shares={fault: 1.0})
    with pytest.raises(NobodyReplies, match=rf"judge: .*HTTP {fault}.*What has come so far is kept"):
        run(tmp_path, judge_server, [raw(i, f"Ball {i} is red.") for i in range(60)], health_check=False)
    assert len(judge_server.calls()) <= 16  # with 8 calls in flight
    assert not (tmp_path / "out").exists()


def test_single_refused_request_rejects_one_record(tmp_path, judge_server):
    judge_server.control(rules=[{"contains": "Ball 4", "fault": "400"}])
    report = run(tmp_path, judge_server, [raw(i, f"Ball {i} is red.") for i in range(40)], share=0.1)
    assert (report.written, report.rejected) == (39, {"refused": 1})


def test_enabled_guards_decide_before_judge(tmp_path, judge_server):
    raws = [raw(1, "The answer is A."), raw(2, "Ball 2 is red.")]
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"judge": {"guards": {"answer_only": True}}}))
    from data_tools.build import BuildSettings

    guards = BuildSettings.load(config).judge.guards
    report = run(tmp_path, judge_server, raws, guards=guards)
    assert report.written == 1
    (dropped,) = lines_of(tmp_path / "out" / "dropped.jsonl")
    assert dropped["verdict"]["source"] == "rule"
    assert len(judge_server.calls()) == 3


def test_judge_failing_health_check_stops_step_before_other_requests(tmp_path, judge_server):
    judge_server.control(yes_when=".")
    with pytest.raises(NobodyReplies, match=r"fails its health check.*the known No got Yes"):
        run(tmp_path, judge_server, [raw(i, "Ball is red.") for i in range(50)])
    assert len(judge_server.calls()) == 2
    assert run(tmp_path, judge_server, [raw(1, "x")], health_check=False).written == 1


def test_facts_judge_step_needs_no_model(tmp_path):
    facts = [{"state": "red", "not": ["blue"]}]
    raws = [
        {**raw(1, "Ball 1 is red."), "facts": facts},
        {**raw(2, "Ball 2 is red or blue."), "facts": facts},
        {**raw(3, "Ball 3 is red."), "facts": "nonsense {"},
        raw(4, "Ball 4 is red."),
    ]
    file = write_lines(tmp_path / "in.jsonl", raws)
    report = judge([file], tmp_path / "out", JudgeStepSettings("facts"), max_reject_share=1.0)
    assert (report.written, report.dropped) == (1, {"observation does not suffice": 1})
    assert report.rejected == {"bad facts": 1, "no facts": 1}


def test_edited_observation_or_prompt_is_judged_again(tmp_path, judge_server):
    template = tmp_path / "judge.txt"
    template.write_text("{question} {solution} {observation} Sufficient?")
    own = {"kwargs": {"template_file": str(template)}, "health_check": False}
    judge_server.control(yes_when="crimson")
    assert run(tmp_path, judge_server, [raw(1, "crimson")], **own).written == 1
    assert run(tmp_path, judge_server, [raw(1, "blue")], **own).written == 0
    assert len(judge_server.calls()) == 2
    template.write_text("{question} {solution} {observation} Is it sufficient?")
    assert run(tmp_path, judge_server, [raw(1, "crimson")], **own).written == 1
    assert len(judge_server.calls()) == 3
    assert "Is it sufficient?" in (tmp_path / "out" / "manifest.json").read_text()


def test_members_of_combined_judge_determine_when_records_are_judged_again(tmp_path, judge_server):
    template = tmp_path / "judge.txt"
    template.write_text("{question} {solution} {observation} Sufficient?")

    def judged(timeout_s):
        own = {"model": "judge", "base_urls": judge_server.base_url, "timeout_s": timeout_s}
        other = {"name": "openai", "kwargs": {**own, "template_file": str(template)}}
        members = {"one": {"name": "openai", "kwargs": own}, "other": other}
        file = write_lines(tmp_path / "in.jsonl", [raw(1, "Ball 1 is red.")])
        judge([file], tmp_path / "out", JudgeStepSettings("all", {"members": members}, health_check=False))
        return len(judge_server.calls())

    assert judged(5.0) == 2
    assert judged(4.0) == 2  # a time limit does not change a verdict
    template.write_text("{question} {solution} {observation} Is it sufficient?")
    assert judged(4.0) == 4
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert "Is it sufficient?" in manifest
    assert "base_urls" not in manifest


def test_judge_step_rejects_records_without_observation(tmp_path, judge_server):
    raws = [raw(1, None), raw(2, "Ball 2 is red.")]
    report = run(tmp_path, judge_server, raws, share=0.5)
    assert (report.written, report.rejected) == (1, {"no observation": 1})
    with pytest.raises(RowError, match="verify the responses first"):
        request_of(Record.parse(raws[0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "nobody"}, "'nobody' is unknown"),
        ({"kwargs": {"modle": "x"}}, "does not fit judge 'openai'"),
        ({"concurrency": 0}, "concurrency is 0"),
    ],
)
def test_bad_settings_are_refused(tmp_path, changes, message):
    file = write_lines(tmp_path / "in.jsonl", [raw(1, "x")])
    good = {"kwargs": {"model": "m", "base_urls": "http://localhost:1/v1"}}
    with pytest.raises(ValueError, match=message):
        judge([file], tmp_path / "out", JudgeStepSettings(**{**good, **changes}))


def test_judge_command_runs_and_requires_model(tmp_path, judge_server):
    file = write_lines(tmp_path / "in.jsonl", [raw(i, f"Ball {i} is red.") for i in range(3)])
    command = ["judge", str(file), "--out", str(tmp_path / "out"), "--model", "judge"]
    done = CliRunner().invoke(app, [*command, "--base-url", judge_server.base_url, "--concurrency", "2"])
    assert done.exit_code == 0, done.output
    assert "judge: 3 records read, 3 kept" in done.output
    done = CliRunner().invoke(app, ["judge", str(file), "--out", str(tmp_path / "out2")])
    assert done.exit_code == 2


def test_judge_step_errors_use_data_tools_setting_names(tmp_path):
    with pytest.raises(ValueError, match=r"^judge\.name 'nobody' is unknown"):
        judge([write_lines(tmp_path / "in.jsonl", [raw(1, "x")])], tmp_path / "out", JudgeStepSettings("nobody"))


def test_an_error_in_the_check_of_a_silent_judge_ends_the_step(tmp_path, monkeypatch):
    from verl_p2r.judge import Verdict

    class Mine:
        async def judge(self, request):
            await asyncio.sleep(0)
            return Verdict(None, "silent")

        async def ask_anew(self, request):
            raise ZeroDivisionError

    monkeypatch.setattr("data_tools.steps.judge.get_judge", lambda *names, **kwargs: Mine())
    file = write_lines(tmp_path / "in.jsonl", [raw(i, f"Ball {i} is red.") for i in range(90)])
    with pytest.raises(ZeroDivisionError):
        judge([file], tmp_path / "out", JudgeStepSettings("m:Mine", health_check=False, concurrency=8))


def test_judge_step_accepts_custom_judge(tmp_path, monkeypatch):
    class Mine:
        async def judge(self, request):
            from verl_p2r.judge import Verdict

            await asyncio.sleep(0)
            return Verdict("red" in request.observation, "mine")

    monkeypatch.setattr("data_tools.steps.judge.get_judge", lambda *names, **kwargs: Mine())
    file = write_lines(tmp_path / "in.jsonl", [raw(i, f"Ball {i} is {'red' if i else 'blue'}.") for i in range(3)])
    assert judge([file], tmp_path / "out", JudgeStepSettings("m:Mine")).written == 2
    for members in (["a"], {"a": "b"}):  # this judge's own option, named like that of a combined one
        assert judge([file], tmp_path / "out", JudgeStepSettings("m:Mine", {"members": members})).written == 2
