# SPDX-License-Identifier: Apache-2.0
"""Runs against a server that decodes the frames it gets, and fails on command."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import benchmark_files
import pytest
from evaluated_run import make_run, response
from paths import ROOT
from release_files import lines_of
from typer.testing import CliRunner

from data_tools.evaluate import run as running
from data_tools.evaluate.adapters import ADAPTERS
from data_tools.evaluate.cli import app
from data_tools.evaluate.prepare import prepare
from data_tools.evaluate.results import read_run
from data_tools.evaluate.run import DEFAULTS, evaluate
from data_tools.records.files import files_of
from verl_p2r.evaluation import score

NAMES = ("video_mme", "mmvu")


def make(root, names=NAMES, count=3):
    """Prepared benchmarks with their videos; gives the folders."""
    folders = []
    for name in names:
        counts = dict.fromkeys(ADAPTERS[name].counts, count)
        benchmark_files.write_videos(root / name, benchmark_files.MAKERS[name](root / name, counts))
        folders.append(root / "prepared" / name)
        prepare(name, root / name, folders[-1], media_root=root, partial=True)
    return folders


def settings(server, **changes):
    quick = {"timeout_s": 5.0, "deadline_s": 10.0, "concurrency": 8}
    return replace(DEFAULTS, model="judge", base_urls=(server.base_url,), **{**quick, **changes})


def run(root, server, folders, name="run", share=0.01, **changes):
    return evaluate(files_of(folders), root / name, settings(server, **changes), root, max_reject_share=share)


def test_eval_run_sends_videos_and_scores_correct_answers(tmp_path, judge_server):
    folders = make(tmp_path)
    report = run(tmp_path, judge_server, folders)
    assert (report.read, report.written, report.failed) == (12, 12, False)
    results = read_run(tmp_path / "run")
    figures = score(results.records, "video_r1")
    assert {name: (row["score"], row["n"]) for name, row in figures.items()} == {
        "video_mme": (8 / 9, 9),
        "mmvu": (1, 3),
    }
    # The one wrong answer: one item's first option is "A. red.", so the server writes "red" instead of a letter.
    assert all(row["format_rate"] == 1 for row in figures.values())
    assert "at most 32 frames (2 a second) of at most 200,704 pixels" in results.setting
    assert "temperature 0.01, top_p 0.001, max_tokens 2048" in results.setting
    assert results.prepared_for == ["video_r1"]


def test_eval_run_decodes_each_video_once(tmp_path, judge_server, monkeypatch):
    folders = make(tmp_path, ("video_mme",))
    read = []
    real = running.media_parts
    monkeypatch.setattr(
        running, "media_parts", lambda record, *a, **k: read.append(record.path) or real(record, *a, **k)
    )
    assert run(tmp_path, judge_server, folders).written == 9
    assert sorted(read) == ["video_mme/data/v_0.mp4", "video_mme/data/v_1.MP4", "video_mme/data/v_2.mkv"]


def test_second_eval_run_reads_frames_from_cache(tmp_path, judge_server, monkeypatch):
    from verl_p2r.media import decode

    folders = make(tmp_path, ("mmvu",))
    files, cache = files_of(folders), tmp_path / "frames"
    evaluate(files, tmp_path / "one", settings(judge_server), tmp_path, frame_cache=cache)
    monkeypatch.setattr(decode, "fetch_video", lambda *_: pytest.fail("it was decoded again"))
    evaluate(files, tmp_path / "two", settings(judge_server), tmp_path, frame_cache=cache)
    assert [r["response"] for r in read_run(tmp_path / "two").records] == [
        r["response"] for r in read_run(tmp_path / "one").records
    ]


def test_unreadable_media_are_reported_and_stay_in_the_denominator(tmp_path, judge_server):
    folders = make(tmp_path, ("mmvu",), count=5)
    (tmp_path / "mmvu/videos/Art/1.mp4").write_bytes(b"no video")
    (tmp_path / "mmvu/videos/Art/2.mp4").unlink()
    report = run(tmp_path, judge_server, folders, share=0.1)
    assert report.failed
    figures = score(read_run(tmp_path / "run").records, "video_r1")["mmvu"]
    assert (figures["n"], figures["score"]) == (5, 0.6)
    assert figures["lost"] == {"unreadable file": 1, "missing file": 1}
    # Repaired, the two are asked, and nothing else is.
    calls = len(judge_server.calls())
    benchmark_files.write_videos(
        tmp_path / "mmvu", {f"videos/Art/{i}.mp4": benchmark_files.colour_of(i) for i in (1, 2)}
    )
    assert run(tmp_path, judge_server, folders).written == 5
    assert len(judge_server.calls()) == calls + 2


def test_lost_items_with_long_ids_keep_their_reason(tmp_path):
    """The list of rejects shortens ids, so the reason must be found in another way."""
    prepared = tmp_path / "prepared" / "mmvu"
    make(tmp_path, ("mmvu",), count=2)
    part = prepared / "part-00000.jsonl"
    part.write_text(part.read_text().replace("mmvu/validation_1", f"mmvu/{'x' * 100}"))
    run = make_run(tmp_path, {"validation_0": response("o", "t", "A"), "x" * 100: None})
    assert [record.get("lost") for record in read_run(run).records] == [None, "missing file"]


def test_empty_reply_scores_zero_and_is_not_lost(tmp_path, judge_server):
    folders = make(tmp_path, ("mmvu",))
    judge_server.control(sequence=["null_content"])
    assert run(tmp_path, judge_server, folders, concurrency=1).written == 3
    figures = score(read_run(tmp_path / "run").records, "video_r1")["mmvu"]
    assert (figures["score"], figures["lost"]) == (pytest.approx(2 / 3), {})


def test_a_changed_setting_asks_again_and_a_changed_protocol_does_not(tmp_path, judge_server):
    folders = make(tmp_path, ("mmvu",))
    run(tmp_path, judge_server, folders)
    run(tmp_path, judge_server, folders)
    assert len(judge_server.calls()) == 3
    run(tmp_path, judge_server, folders, max_tokens=1024)
    assert len(judge_server.calls()) == 6
    for protocol in ("video_r1", "official"):
        score(read_run(tmp_path / "run").records, protocol)
    assert len(judge_server.calls()) == 6


@pytest.mark.parametrize(("prompt", "said"), [("direct", "and nothing else"), ("chain_of_thought", "<think>")])
def test_baseline_prompt_templates_are_used_in_eval_run(tmp_path, judge_server, prompt, said):
    from data_tools.steps.generate_settings import prompt_of
    from verl_p2r.data.prompt_template import PromptTemplate
    from verl_p2r.data.record import Record

    folders = make(tmp_path, ("mmvu",))
    report = run(tmp_path, judge_server, folders, prompt_template=prompt)
    assert report.written == 3
    assert f"prompt {prompt}" in read_run(tmp_path / "run").setting
    record = Record.parse(lines_of(folders[0] / "part-00000.jsonl")[0])
    assert said in prompt_of(record, PromptTemplate.load(prompt))


def test_moved_or_changed_inputs_are_detected(tmp_path, judge_server):
    (folder,) = make(tmp_path, ("mmvu",))
    run(tmp_path, judge_server, [folder])
    moved = folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="which is not there: name their folder by --prepared"):
        read_run(tmp_path / "run")
    assert len(read_run(tmp_path / "run", [moved]).records) == 3
    invoke = CliRunner().invoke
    assert invoke(app, ["compare", str(tmp_path / "run"), str(tmp_path / "run")]).exit_code == 2
    done = invoke(app, ["compare", str(tmp_path / "run"), str(tmp_path / "run"), "--prepared", str(moved)])
    assert done.exit_code == 0, done.output
    with (moved / "part-00000.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="has changed since the run"):
        read_run(tmp_path / "run", [moved])
    with pytest.raises(ValueError, match="is not the output of `verl-p2r-eval run`"):
        read_run(moved)


def test_a_run_has_only_its_own_items_among_several_prepared_benchmarks(tmp_path):
    replies = {"validation_0": "A", "001-1": "A"}  # one item each
    runs = [make_run(tmp_path, replies, f"run_{name}", name) for name in NAMES]
    own = [[record["problem_id"] for record in read_run(run).records] for run in runs]
    assert all(own)
    folders = [tmp_path / "prepared" / name for name in NAMES]
    assert [[record["problem_id"] for record in read_run(run, folders).records] for run in runs] == own


def test_a_check_against_a_row_without_the_benchmark_fails(tmp_path):
    run = make_run(tmp_path, {"validation_0": "A"})
    done = CliRunner().invoke(app, ["score", str(run), "--check", "video-r1-32"])
    assert done.exit_code == 2
    assert "run has no benchmark of video-r1-32, which has VSI-Bench, Video-MME: name another row" in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--video-as", "image"], "video_as is 'image': give video or images"), (["--max-lost", "5"], "or equal to 1")],
)
def test_unusable_options_of_a_run_are_refused(tmp_path, options, message):
    command = ["run", str(tmp_path), "--media-root", str(tmp_path), "--model", "m", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 2
    assert message in done.output


def test_eval_commands_run_and_report_errors(tmp_path, judge_server):
    folders = make(tmp_path)
    invoke = CliRunner().invoke
    command = ["run", *map(str, folders), "--media-root", str(tmp_path), "--model", "judge", "--concurrency", "8"]
    command += ["--base-url", judge_server.base_url]
    done = invoke(app, [*command, "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    done = invoke(app, [*command, "--out", str(tmp_path / "b"), "--frames", "4"])
    assert done.exit_code == 0, done.output
    done = invoke(app, ["score", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "scores")])
    assert done.exit_code == 0, done.output
    assert "Protocol **video_r1**" in done.output
    assert "at most 4 frames" in done.output
    assert "88.9 [56.5–98.0] n=9" in done.output
    assert "VideoP2R SFT + PA-GRPO, 7B" in done.output
    assert "9 of the 2,700 published items" in done.output
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores[0]["benchmarks"]["mmvu"]["score"] == 1
    done = invoke(app, ["score", str(tmp_path / "a"), "--check", "videop2r-base"])
    assert done.exit_code == 1
    assert "MMVU: 100.0, published 60.0: NOT within 2 points" in done.output
    done = invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert done.exit_code == 0, done.output
    assert "Video-MME: 88.9 → 88.9, difference +0.0" in done.output
    assert "\n- b: judge, at most 4 frames" in done.output.replace("**", "")
    done = invoke(app, ["score", str(tmp_path / "a"), "--protocol", "mine"])
    assert done.exit_code == 2
    assert "name one of official, video_r1" in done.output


def test_too_many_lost_items_fail_the_run_and_name_max_lost(tmp_path, judge_server):
    folders = make(tmp_path, ("mmvu",))
    next((tmp_path / "mmvu").rglob("*.mp4")).unlink()
    command = ["run", *map(str, folders), "--media-root", str(tmp_path), "--model", "judge", "--out"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "a"), "--base-url", judge_server.base_url])
    assert done.exit_code == 1, done.output
    assert "raise --max-lost" in done.output
    assert "max_reject_share" not in done.output


def test_overlap_with_training_data_is_reported(tmp_path, judge_server):
    folders = make(tmp_path, ("mmvu",), count=4)
    run(tmp_path, judge_server, folders)
    trained = [{"path": "x/0.mp4", "problem": "Another?"}, {"path": "Art/1.mp4", "problem": "What?"}]
    (tmp_path / "train.json").write_text(json.dumps(trained))
    done = CliRunner().invoke(app, ["score", str(tmp_path / "run"), "--trained-on", str(tmp_path / "train.json")])
    assert done.exit_code == 0, done.output
    assert "in the training data: 25.0 % of items by their medium, 0.0 % by their question" in done.output


@pytest.mark.slow
def test_eval_run_killed_at_random_gives_same_output(tmp_path, judge_server):
    """The command is killed 22 times; the output is that of a run that was left alone, and no reply is paid twice."""
    folders = make(tmp_path, ("vsi_bench",), count=12)
    judge_server.control(latency=0.3)
    command = [sys.executable, "-m", "data_tools.evaluate", "run", *map(str, folders), "--media-root", str(tmp_path)]
    command += ["--model", "judge", "--base-url", judge_server.base_url, "--concurrency", "2"]
    draw = random.Random(0)
    kills = 0
    while kills < 22:
        process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], cwd=ROOT, env={**os.environ})
        end = time.monotonic() + 1 + draw.random() * 3.5
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    subprocess.run([*command, "--out", str(tmp_path / "killed")], check=True, cwd=ROOT)
    answered = [call.prompt for call in judge_server.calls() if call.outcome == "ok"]
    assert len(answered) <= 120 + 2 * kills  # at most those in flight are asked twice
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, cwd=ROOT)
    whole, killed = ((tmp_path / name / "part-00000.jsonl").read_bytes() for name in ("whole", "killed"))
    assert killed == whole
    assert kills >= 5
