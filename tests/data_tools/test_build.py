# SPDX-License-Identifier: Apache-2.0
"""The whole pipeline from one file, and what kills leave of it."""

import gzip
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from paths import ROOT
from pipeline_records import make_records
from processes import family, kill
from release_files import lines_of, release_record, write_lines
from typer.testing import CliRunner

from data_tools.build import BuildSettings
from data_tools.cli import app
from data_tools.steps.run import count_records

EXAMPLE = ROOT / "examples" / "data" / "build.yaml"


def config_of(server, **changes) -> dict:
    quick = {"model": "judge", "timeout_s": 5.0, "deadline_s": 10.0}
    config = {
        "inputs": ["../in.jsonl"],
        "out": "out",
        "media_root": "..",
        "generate": {**quick, "base_urls": [server.base_url], "concurrency": 4},
        "judge": {"kwargs": {**quick, "base_urls": [server.base_url]}, "concurrency": 4},
        "export": {"val_share": 0.3},
    }
    return {**config, **changes}


def prepare(folder: Path, config: dict) -> Path:
    folder.mkdir()
    (folder / "build.yaml").write_text(yaml.safe_dump(config))
    return folder


def start(folder: Path, command: list[str]) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("ab") as log:
        how = {"cwd": folder, "stdout": log, "stderr": log, "env": env, "start_new_session": True}
        return subprocess.Popen([sys.executable, "-m", "data_tools", *command], **how)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


MARKS = ("", "", "[wrong]", "[blind]", "[bare]")


def test_build_runs_all_steps_and_exports(tmp_path, judge_server, monkeypatch):
    write_lines(tmp_path / "in.jsonl", make_records(tmp_path, 20, videos=2, marks=MARKS))
    monkeypatch.chdir(prepare(tmp_path / "a", config_of(judge_server)))
    done = CliRunner().invoke(app, ["build", "build.yaml"])
    assert done.exit_code == 0, done.output
    assert "generate: 20 records read, 20 kept" in done.output
    assert "verify: 20 records read, 12 kept" in done.output
    assert "judge: 12 records read, 8 kept" in done.output
    kept = [line for part in Path("out/3-judge").glob("part-*.jsonl") for line in lines_of(part)]
    assert [int(line["problem_id"]) % 5 for line in kept] == [0, 1] * 4
    rows = {}
    for kind, count in (("sft", 8), ("rl", 20)):
        splits = [pq.read_table(file).to_pylist() for file in sorted(Path("out", kind).glob("*.parquet"))]
        rows[kind] = [row for split in splits for row in split]
        assert len(rows[kind]) == count
    response = rows["sft"][0]["messages"][1]["content"]
    assert re.match(r"<observation>Based on the question, I need to notice a (red|green|blue) ball in ", response)
    media = [medium for row in rows["rl"] for medium in row["videos"] or row["images"]]
    assert all(Path(medium.get("video") or medium["image"]).is_file() for medium in media)
    history = json.loads(Path("out/sft/manifest.json").read_text())["history"]
    assert [(step["step"], step["read"], step["written"]) for step in history] == [
        ("generate", 20, 20),
        ("verify", 20, 12),
        ("judge", 12, 8),
    ]
    calls = len(judge_server.calls())
    assert CliRunner().invoke(app, ["build", "build.yaml"]).exit_code == 0
    assert len(judge_server.calls()) == calls  # a second build asks nothing


def test_single_step_reads_its_section_of_build_config(tmp_path, judge_server, monkeypatch):
    records = make_records(tmp_path, 4)
    records[1]["path"] = "gone.png"
    write_lines(tmp_path / "in.jsonl", records)
    monkeypatch.chdir(prepare(tmp_path / "a", config_of(judge_server, max_reject_share=0.5)))
    command = ["generate", "../in.jsonl", "--out", "out", "--config", "build.yaml"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output  # media_root and max_reject_share are the file's
    assert "generate: 4 records read, 3 kept" in done.output
    assert CliRunner().invoke(app, [*command, "--max-reject-share", "0.1"]).exit_code == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('{"a": 1}\n{"a": 2}\n', 2),
        ('{"a": 1}\n\n{"a": 2}', 2),
        ('[{"a": 1},\n{"a": 2}, 3]', 3),
        ('\n{"a": 1}\n', 1),
        ("", 0),
    ],
)
def test_records_are_counted_for_progress_bar(tmp_path, text, count):
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "b.gz").write_bytes(gzip.compress(text.encode()))
    assert count_records([tmp_path / "a.json"]) == count_records([tmp_path / "b.gz"]) == count


def test_a_step_that_fails_ends_the_build(tmp_path, judge_server, monkeypatch):
    write_lines(tmp_path / "in.jsonl", make_records(tmp_path, 6, marks=("[bare]",)))
    monkeypatch.chdir(prepare(tmp_path / "a", config_of(judge_server)))
    done = CliRunner().invoke(app, ["build", "build.yaml"])
    assert done.exit_code == 1
    assert "verify: 6 records read, 0 kept" in done.output
    assert not Path("out/3-judge").exists()


def kill_again_and_again(folder: Path, command: list[str], server, kills: int, rng: random.Random) -> None:
    """Start a command and kill it with SIGKILL, so many times: in the middle of asking, or anywhere."""
    for number in range(kills):
        process, before, begun = start(folder, command), len(server.calls()), time.monotonic()
        # By calls it is asking when it dies; by the clock it may as well be reading, or putting a folder in place.
        calls, seconds = (rng.randint(1, 3), 60.0) if number % 4 else (10**9, rng.uniform(0.3, 3.0))
        while process.poll() is None and time.monotonic() - begun < seconds:
            if len(server.calls()) - before >= calls:
                time.sleep(rng.uniform(0, 0.1))
                break
            time.sleep(0.005)
        assert process.poll() is None, f"it was done before kill {number}: give it more to do"
        kill(family(process.pid))
        process.wait()


def assert_same(left: Path, right: Path) -> None:
    left_files, right_files = tree(left), tree(right)
    assert set(left_files) == set(right_files)
    replies = [name for name in left_files if name.endswith(".replies.sqlite")]  # in the order they came
    assert [name for name in left_files if left_files[name] != right_files[name] and name not in replies] == []
    assert replies
    assert not [path for path in right.iterdir() if path.name.startswith(".")]  # nothing is left lying about


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": {"kwargs": {"mdel": "x"}}}, "judge.kwargs does not fit judge 'openai'"),
        ({"export": {"val_share": 5}}, "val_share is 5"),
        ({"export": {"prompt_template": "nothing.txt"}}, "nothing.txt"),
    ],
)
def test_invalid_settings_of_later_steps_are_reported_before_any_request(
    tmp_path, judge_server, monkeypatch, changes, message
):
    write_lines(tmp_path / "in.jsonl", make_records(tmp_path, 3))
    monkeypatch.chdir(prepare(tmp_path / "a", config_of(judge_server, **changes)))
    done = CliRunner().invoke(app, ["build", "build.yaml"])
    assert done.exit_code == 2
    assert message in done.output
    assert "algorithm" not in done.output
    assert not judge_server.calls()


def test_build_excludes_records_with_missing_media(tmp_path, judge_server, monkeypatch):
    records = make_records(tmp_path, 8)
    records[1]["path"] = "gone.png"
    write_lines(tmp_path / "in.jsonl", records)
    monkeypatch.chdir(prepare(tmp_path / "a", config_of(judge_server, max_reject_share=0.2, export={"val_share": 0.0})))
    done = CliRunner().invoke(app, ["build", "build.yaml"])
    assert done.exit_code == 0, done.output
    assert pq.read_metadata("out/rl/train.parquet").num_rows == 7
    assert "no val.parquet" in done.output
    done = CliRunner().invoke(app, ["stats", "out"])
    assert "did you mean out/1-generate or out/2-verify or out/3-judge?" in done.output


@pytest.mark.slow
def test_judge_step_killed_16_times_gives_same_output(tmp_path, judge_server):
    raws = [
        release_record(i, problem=f"Which ball is {i}?", observation=f"Ball {i}: {'the red one' if i % 3 else 'none'}.")
        for i in range(80)
    ]
    write_lines(tmp_path / "in.jsonl", [{**raw, "output": None, "process": None} for raw in raws])
    calm, killed = (prepare(tmp_path / name, config_of(judge_server)) for name in ("calm", "killed"))
    command = ["judge", "../in.jsonl", "--out", "out/judged", "--config", "build.yaml"]
    assert start(calm, command).wait(120) == 0, (calm / "log").read_text()
    paid = len(judge_server.calls())
    judge_server.control(latency=0.1)
    kill_again_and_again(killed, command, judge_server, 16, random.Random(0))
    assert start(killed, command).wait(120) == 0, (killed / "log").read_text()
    assert_same(calm / "out", killed / "out")
    # What had come was not asked again: a kill costs what was in flight, and the two known questions of a start.
    assert len(judge_server.calls()) - paid <= paid + 16 * (4 + 2)


@pytest.mark.slow
def test_build_killed_six_times_gives_same_output(tmp_path, judge_server):
    write_lines(tmp_path / "in.jsonl", make_records(tmp_path, 50, videos=1, marks=MARKS))
    calm, killed = (prepare(tmp_path / name, config_of(judge_server)) for name in ("calm", "killed"))
    command = ["build", "build.yaml"]
    assert start(calm, command).wait(120) == 0, (calm / "log").read_text()
    judge_server.control(latency=0.1)
    kill_again_and_again(killed, command, judge_server, 6, random.Random(0))
    assert start(killed, command).wait(120) == 0, (killed / "log").read_text()
    assert_same(calm / "out", killed / "out")


def test_example_build_config_equals_defaults():
    settings, text = BuildSettings.load(EXAMPLE), yaml.safe_load(EXAMPLE.read_text())
    own = {
        "inputs": tuple(text["inputs"]),
        "media_root": text["media_root"],
        "generate": {"model": text["generate"]["model"], "base_urls": text["generate"]["base_urls"]},
        "judge": {"kwargs": text["judge"]["kwargs"]},
    }
    from verl_p2r.settings import merge

    assert settings == merge(BuildSettings(), {**own, "inputs": text["inputs"]}, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inputs: [", "cannot be read as YAML"),
        ("input: [a.jsonl]", r"b\.yaml\.input does not exist: did you mean inputs\?"),
        ("inputs: a.jsonl", "give a list of texts"),
        ("generate: {video_as: film}", r"generate\.video_as is 'film': use one of video, images"),
        ("verify: {min_accuracy: 2}", "min_accuracy is 2"),
        ("max_reject_share: 5", r"max_reject_share is 5\.0: give a share between 0 and 1"),
        ("judge: {kwargs: 3}", "give a mapping"),
        ("inputs: [nowhere.jsonl]", "nowhere.jsonl does not exist"),
        ("[]", "give a mapping of settings"),
        ("{}", "inputs is empty"),
        ("export: {media_root: x}", "export.media_root is set: set media_root at the top level"),
    ],
)
def test_invalid_build_config_is_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.yaml").write_text(text)
    done = CliRunner().invoke(app, ["build", "b.yaml"])
    assert done.exit_code == 2, done.output
    assert re.search(message, done.output), done.output
