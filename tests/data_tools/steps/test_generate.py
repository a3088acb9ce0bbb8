# SPDX-License-Identifier: Apache-2.0
"""Step 1 against a server that decodes the frames it gets, and fails on command."""

import json
import threading
import time

import pytest
from pipeline_records import OPTIONS, make_records, write_image, write_video
from release_files import lines_of, write_lines
from typer.testing import CliRunner

from data_tools.cli import app
from data_tools.steps.asking import NobodyReplies
from data_tools.steps.generate import generate
from data_tools.steps.generate_settings import GenerateSettings, prompt_of
from verl_p2r.chat import client as chat_client
from verl_p2r.chat import endpoints
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record
from verl_p2r.media.rules import MediaSettings


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):

    monkeypatch.setattr(chat_client, "_BACKOFF_S", 0.01)
    monkeypatch.setattr(endpoints, "_REST_S", 0.05)


def settings(server, **changes) -> GenerateSettings:
    quick = {"timeout_s": 5.0, "deadline_s": 10.0, "concurrency": 8}
    return GenerateSettings(model="judge", base_urls=(server.base_url,), **{**quick, **changes})


def run(tmp_path, server, records, share=0.01, name="out", **changes):
    file = write_lines(tmp_path / "in.jsonl", records)
    return generate([file], tmp_path / name, settings(server, **changes), tmp_path, max_reject_share=share)


def outputs(folder) -> list[Record]:
    return [Record.parse(raw) for part in sorted(folder.glob("part-*.jsonl")) for raw in lines_of(part)]


def test_generate_server_receives_media_content(tmp_path, judge_server):
    records = make_records(tmp_path, 10)
    settled = []
    file = write_lines(tmp_path / "in.jsonl", records)
    report = generate([file], tmp_path / "out", settings(judge_server), tmp_path, on_record=settled.append)
    assert (report.read, report.written, report.failed) == (10, 10, False)
    assert settled == [True] * 10
    made = outputs(tmp_path / "out")
    assert [record.problem_id for record in made] == [str(i) for i in range(10)]  # in the order of the input
    for record in made:
        assert f"<answer>{record.solution[8]}</answer>" in record.output  # read off the pixels
        # A video has 3 s at 2 a second, and its frames are enlarged to the fewest pixels that training takes.
        seen = "6 frames of 392 x 280" if record.data_type == "video" else "1 frames of 112 x 84"
        assert f"in {seen}" in record.output
        assert record.extra["generated_by"] == "judge"
        assert record.extra["kept_as_it_was"] == {"number": int(record.problem_id)}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["step"] == "generate"
    assert manifest["settings"]["model"] == "judge"
    assert manifest["settings"]["media"]["max_frames"] == 16
    assert "base_urls" not in manifest["settings"]


@pytest.mark.parametrize(("way", "parts"), [("video", 1), ("images", 12)])
def test_video_is_sent_as_video_or_as_images_by_setting(tmp_path, judge_server, way, parts):
    from data_tools.media.parts import media_parts

    write_video(tmp_path / "a.mp4", "green")
    raw = {**make_records(tmp_path, 1)[0], "data_type": "video", "path": "a.mp4"}
    made, body = media_parts(Record.parse(raw), tmp_path, MediaSettings(), video_as=way)
    assert len(made) == parts
    times = [part["text"] for part in made if part["type"] == "text"]
    assert times == ([] if way == "video" else [f"<{t} seconds>" for t in (0.0, 0.5, 1.0, 1.8, 2.2, 2.8)])
    if way == "video":
        metadata = body["media_io_kwargs"]["video"]
        assert metadata["frames_indices"] == [0, 2, 4, 7, 9, 11]
        assert (metadata["fps"], metadata["total_num_frames"], metadata["duration"]) == (4.0, 12, 3.0)
    assert run(tmp_path, judge_server, [raw], video_as=way).written == 1
    assert "6 frames" in outputs(tmp_path / "out")[0].output


def test_generate_prompt_equals_training_prompt(tmp_path):
    record = Record.parse(make_records(tmp_path, 1)[0])
    from verl_p2r.data.columns import rl_columns

    template = PromptTemplate.load("process_aware")
    trained = rl_columns(record, 0, template)["prompt"][0]["content"]
    assert f"<image>{prompt_of(record, template)}" == trained
    assert "Options:\nA. red\nB. green" in trained


TRANSIENT = ["500", "429", "drop", "junk", "truncated", "html", "empty_choices", "null_content"]


@pytest.mark.parametrize("fault", TRANSIENT)
def test_generate_retries_transient_faults(tmp_path, judge_server, fault):
    judge_server.control(sequence=[fault, fault])
    report = run(tmp_path, judge_server, make_records(tmp_path, 4))
    assert (report.written, report.rejected) == (4, {})


def test_permanent_failure_rejects_only_its_record(tmp_path, judge_server):
    records = make_records(tmp_path, 6, marks=("", "[empty]"))
    records[4]["path"] = "./img/gone.png"
    (tmp_path / "img" / "torn.png").write_bytes((tmp_path / "img" / "red.png").read_bytes()[:40])
    records[0]["path"] = "./img/torn.png"
    report = run(tmp_path, judge_server, records, share=1.0)
    assert (report.read, report.written) == (6, 1)
    assert report.rejected == {"useless reply": 3, "missing file": 1, "unreadable file": 1}
    rejects = {line["record"]: line for line in lines_of(tmp_path / "out" / "rejects.jsonl")}
    assert "the reply is empty" in rejects["1"]["message"]
    assert rejects["4"]["line"] == 5
    assert "gone.png" in rejects["4"]["message"]
    assert [record.problem_id for record in outputs(tmp_path / "out")] == ["2"]


def test_second_generate_run_asks_only_for_missing_replies(tmp_path, judge_server):
    records = make_records(tmp_path, 8)
    (tmp_path / records[3]["path"]).rename(tmp_path / "late.mp4")
    assert run(tmp_path, judge_server, records, share=1.0).written == 7
    assert len(judge_server.calls()) == 7
    (tmp_path / "late.mp4").rename(tmp_path / records[3]["path"])
    assert run(tmp_path, judge_server, records).written == 8
    assert len(judge_server.calls()) == 8
    more = [*records, *[{**r, "problem_id": f"more {i}"} for i, r in enumerate(records[:2])]]
    assert run(tmp_path, judge_server, more).written == 10
    assert len(judge_server.calls()) == 10
    assert run(tmp_path, judge_server, more, max_tokens=99).written == 10  # another request
    assert len(judge_server.calls()) == 20


@pytest.mark.parametrize(("fault", "calls"), [("401", 12), ("403", 12), ("404", 12), ("407", 12), ("308", 12)])
def test_server_refusing_every_request_stops_step_at_once(tmp_path, judge_server, fault, calls):
    records = make_records(tmp_path, 60)
    judge_server.control(shares={fault: 1.0})
    with pytest.raises(NobodyReplies, match=rf"generate: .*HTTP {fault}.*What has come so far is kept"):
        run(tmp_path, judge_server, records)
    assert len(judge_server.calls()) <= calls + 12
    assert not (tmp_path / "out").exists()


def test_a_server_that_accepts_no_times_stops_the_step_with_the_option_it_lacks(tmp_path, judge_server):
    records = make_records(tmp_path, 60)
    judge_server.control(refuses=["media_io_kwargs"])
    with pytest.raises(NobodyReplies, match=r"generate: .*Start the server with --trust-request-mm-kwargs"):
        run(tmp_path, judge_server, records)
    assert len(judge_server.calls()) <= 24
    judge_server.control()
    assert run(tmp_path, judge_server, records).written == 60


def test_server_death_stops_step_and_keeps_replies(tmp_path, judge_server):
    records = make_records(tmp_path, 80)
    judge_server.control(latency=0.2)
    begun = time.monotonic()
    threading.Timer(1.0, judge_server.kill).start()
    with pytest.raises(NobodyReplies, match=r"generate: .*What has come so far is kept"):
        run(tmp_path, judge_server, records, concurrency=4, timeout_s=0.5, deadline_s=1.0)
    assert time.monotonic() - begun < 30  # some deadlines, not one for each record
    judge_server.start()
    judge_server.control()
    assert run(tmp_path, judge_server, records).written == 80
    assert len([call for call in judge_server.calls() if call.outcome == "ok"]) == 80


def test_unreachable_server_is_reported_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_client, "_REACH_S", 0.1)
    file = write_lines(tmp_path / "in.jsonl", make_records(tmp_path, 60))
    nowhere = GenerateSettings(model="m", base_urls=("http://127.0.0.1:9/v1",))
    begun = time.monotonic()
    with pytest.raises(NobodyReplies, match=r"generate: http://127\.0\.0\.1:9/v1: .*start the server"):
        generate([file], tmp_path / "out", nowhere, tmp_path)
    assert time.monotonic() - begun < 20  # and not the deadline of twenty minutes


def test_many_refused_records_do_not_stop_the_others(tmp_path, judge_server):
    """Such as prompts that are too long: however many come first, the others are asked."""
    records = make_records(tmp_path, 90)
    judge_server.control(sequence=["400"] * 60)
    report = run(tmp_path, judge_server, records, share=1.0, concurrency=2)
    assert (report.written, report.rejected) == (30, {"refused": 60})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("problem", "What colour is it now?"),
        ("problem_type", "free-form"),
        ("options", OPTIONS[:3]),
        ("solution", "B"),
        ("data_type", "video"),
        ("path", "img/other.png"),
        ("media", {"max_pixels": 3136}),
        ("output", "another"),
    ],
)
def test_changed_record_is_asked_again(tmp_path, judge_server, field, value):
    (record,) = make_records(tmp_path, 1)
    write_image(tmp_path / "img/other.png", "blue")
    write_video(tmp_path / "img/red.mp4", "red")
    if field == "data_type":
        record["path"] = "img/red.mp4"  # PyAV reads it, and so does Pillow fail: only one of the two works
        run(tmp_path, judge_server, [record], share=1.0)
        assert run(tmp_path, judge_server, [{**record, field: value}]).written == 1
        return
    assert run(tmp_path, judge_server, [record]).written == 1
    assert run(tmp_path, judge_server, [{**record, field: value}]).written == 1
    assert len(judge_server.calls()) == 2


def test_unusable_output_folder_is_reported_before_any_request(tmp_path, judge_server):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="holds something other than the output"):
        run(tmp_path, judge_server, make_records(tmp_path, 3))
    assert not judge_server.calls()


def test_new_response_discards_verdict_of_old_response(tmp_path, judge_server):
    old = {"observation": "old", "process": "old", "select": False, "reward": 0.0}
    old |= {"verdict": {"value": False}, "dropped": {"step": "judge", "reason": "x", "message": "y"}}
    run(tmp_path, judge_server, [{**make_records(tmp_path, 1)[0], **old}])
    (line,) = lines_of(tmp_path / "out" / "part-00000.jsonl")
    assert not set(old) & set(line)


def test_concurrent_runs_of_one_step_are_refused(tmp_path, judge_server):
    from data_tools.steps.replies import Replies

    with Replies.beside(tmp_path / "out"), pytest.raises(ValueError, match="if another process runs this step"):
        run(tmp_path, judge_server, make_records(tmp_path, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "no model is named"),
        ({"base_urls": ()}, "generate's base_urls is empty"),
        ({"base_urls": ("localhost",)}, "is not a URL"),
        ({"prompt_template": "nowhere.txt"}, "cannot be read"),
    ],
)
def test_bad_settings_are_refused(tmp_path, changes, message):
    file = write_lines(tmp_path / "in.jsonl", make_records(tmp_path, 1))
    good = {"model": "m", "base_urls": ("http://localhost:1/v1",)}
    with pytest.raises(ValueError, match=message):
        generate([file], tmp_path / "out", GenerateSettings(**{**good, **changes}), tmp_path)


def test_generate_command_runs_and_reports_unknown_model(tmp_path, judge_server):
    file = write_lines(tmp_path / "in.jsonl", make_records(tmp_path, 4))
    command = ["generate", str(file), "--out", str(tmp_path / "out"), "--media-root", str(tmp_path)]
    done = CliRunner().invoke(app, [*command, "--model", "judge", "--base-url", judge_server.base_url])
    assert done.exit_code == 0, done.output
    assert "generate: 4 records read, 4 kept" in done.output
    done = CliRunner().invoke(app, [*command, "--model", "other", "--base-url", judge_server.base_url])
    assert done.exit_code == 2
    assert "the server has no model 'other'" in done.output
