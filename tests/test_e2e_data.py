# SPDX-License-Identifier: Apache-2.0
"""From questions about mp4 files to SFT and RL parquet on a CPU: a real vLLM server, and vLLM under Ray Data.

A tiny model is taught its responses beforehand, right ones and wrong ones, so that each record's way through the
three steps is known. Prints how long each part took.
"""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from served_video import check_served_as_trained
from taught_world import SIZE, World, loaded, teach
from vllm_server import end, vllm_server

from verl_p2r.plugin.cpu.platform_env import ROLLOUT_ENV

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("no_segments_left")]

LIMIT = 180  # seconds, for a server to come up or a command to end
ENV = {**os.environ, **ROLLOUT_ENV, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local", "RAY_DEDUP_LOGS": "0"}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model) -> World:
    """Twelve records and a model that has learned the response to each."""
    return teach(tmp_path_factory.mktemp("data"), tiny_model)


@pytest.fixture(scope="module")
def server(world) -> Iterator[str]:
    """The URL of a vLLM server that knows the model by the name `taught`."""
    with vllm_server(world.model, "taught", world.folder / "server.log", ENV, LIMIT, length=512, rows=16) as url:
        yield url


def data_tool(name: str, *arguments: str | Path, cwd: Path) -> str:
    """Run a command of the data tools; give what it prints."""
    start = time.monotonic()
    command = [sys.executable, "-m", "data_tools", name, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=LIMIT, check=False)
    print(f"\n{name}: {time.monotonic() - start:.0f} s", flush=True)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def config(world, server) -> Path:
    """A YAML file for all steps."""
    settings = {
        "inputs": [str(world.folder / "records.jsonl")],
        "out": str(world.folder / "built"),
        "media_root": str(world.folder),
        "generate": {
            "model": "taught",
            "base_urls": [server],
            "concurrency": 4,
            "max_tokens": 64,
            "prompt_template": str(world.folder / "template.txt"),
            "offline": {
                "model_source": str(world.model),
                "batch_size": 2,
                "max_concurrent_batches": 1,
                "placement_group_config": {"bundles": [{"CPU": 0.5}]},
                "engine_kwargs": {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 1},
            },
        },
        "judge": {"name": "facts"},
        "export": {"val_share": 0.3, "prompt_template": str(world.folder / "template.txt"), "check_media": True},
    }
    (world.folder / "build.yaml").write_text(yaml.safe_dump(settings))
    return world.folder / "build.yaml"


@pytest.fixture(scope="module")
def built(world, config) -> Path:
    """What `build` has made."""
    printed = data_tool("build", config, cwd=world.folder)
    assert "generate: 12 records read, 12 kept" in printed
    assert "verify: 12 records read, 8 kept" in printed
    assert "judge: 8 records read, 6 kept" in printed
    return world.folder / "built"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def parts(folder: Path) -> list[dict]:
    return [line for part in sorted(folder.glob("part-*.jsonl")) for line in lines(part)]


def test_each_record_is_kept_or_dropped_as_planned(world, built):
    assert [line["output"] for line in parts(built / "1-generate")] == world.taught
    dropped = {line["problem_id"]: line["dropped"]["reason"] for line in lines(built / "2-verify" / "dropped.jsonl")}
    dropped |= {line["problem_id"]: line["dropped"]["reason"] for line in lines(built / "3-judge" / "dropped.jsonl")}
    assert [dropped.get(record.problem_id, "kept") for record in world.records] == world.fates
    for step in ("1-generate", "2-verify", "3-judge", "sft", "rl"):
        assert not (built / step / "rejects.jsonl").exists()
    history = json.loads((built / "sft" / "manifest.json").read_text())["history"]
    assert [(step["step"], step["written"]) for step in history] == [("generate", 12), ("verify", 8), ("judge", 6)]


def test_training_datasets_load_built_parquet(world, built):
    from verl_p2r.plugin.datasets.rl_dataset import P2RDataset
    from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset

    responses, asked = [], []
    for split in ("train", "val"):
        sft, processor = loaded(P2RSFTDataset, built / "sft" / f"{split}.parquet", world.model)
        for i in range(len(sft)):
            said = sft[i]["input_ids"][sft[i]["loss_mask"].bool()]
            responses.append(processor.tokenizer.decode(said).removesuffix("<|im_end|>"))
        rl, _ = loaded(P2RDataset, built / "rl" / f"{split}.parquet", world.model)
        rl.require_facts()
        asked += [rl[i]["raw_prompt"][0]["content"] for i in range(len(rl))]
    kept = [response for response, fate in zip(world.taught, world.fates, strict=True) if fate == "kept"]
    assert sorted(responses) == sorted(kept)
    assert sorted(content[0]["video"] for content in asked) == sorted(str(world.folder / r.path) for r in world.records)
    assert all({name: content[0][name] for name in SIZE} == SIZE for content in asked)


def test_llm_judge_runs_on_verified_records(world, built, judge_server):
    arguments = ["--judge", "openai", "--model", "judge", "--base-url", judge_server.base_url]
    printed = data_tool("judge", built / "2-verify", "--out", built / "llm", *arguments, cwd=world.folder)
    assert "judge: 8 records read, 8 kept" in printed  # it looks for the answer's words alone
    verified = parts(built / "2-verify")
    assert len(judge_server.calls()) == 2 + len({(line["observation"], line["solution"]) for line in verified})


def test_served_model_sees_videos_as_in_training(world, server):
    check_served_as_trained(world, server)


OFFLINE = """
import sys
from pathlib import Path
from data_tools.build import BuildSettings
from data_tools.steps.generate import generate
config, file, out, root = map(Path, sys.argv[1:])
settings = BuildSettings.load(config).generate
generate([file], out, settings, root, offline=True, on_record=lambda kept: print("told", flush=True))
"""


def test_server_finishes_killed_offline_run(world, config, built):
    out = world.folder / "killed"
    command = [sys.executable, "-c", OFFLINE, *map(str, (config, world.folder / "records.jsonl", out, world.folder))]
    log = (world.folder / "killed.log").open("wb")
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=world.folder, env=ENV, stdout=subprocess.PIPE, stderr=log, text=True)
    told = next((line for line in process.stdout if line == "told\n"), None)
    end(process)
    print(f"\nkilled after {time.monotonic() - start:.0f} s", flush=True)
    printed = (world.folder / "killed.log").read_text()
    assert told, printed[-5000:]
    assert "TaskPoolMapOperator[Map(_preprocess)]" in printed  # media are read by as many workers as there are cores
    assert not out.exists()
    with contextlib.closing(sqlite3.connect(f"{out}.replies.sqlite")) as replies:
        [(kept,)] = replies.execute("SELECT count(*) FROM replies WHERE reply != ''")
    assert 1 <= kept < 12
    before = served(config)
    arguments = ["--out", out, "--config", config, "--media-root", world.folder]
    data_tool("generate", world.folder / "records.jsonl", *arguments, cwd=world.folder)
    assert parts(out) == parts(built / "1-generate")
    assert served(config) - before == 12 - kept


def test_ray_finishes_server_run_and_rejects_only_bad_records(world, config, built):
    raw = lines(world.folder / "records.jsonl")
    (world.folder / "begun.jsonl").write_text("".join(json.dumps(record) + "\n" for record in raw[:5]))
    arguments = ["--out", world.folder / "begun", "--config", config, "--media-root", world.folder]
    data_tool("generate", world.folder / "begun.jsonl", *arguments, cwd=world.folder)
    before = served(config)
    gone = {**raw[0], "problem_id": "gone", "path": "gone.mp4"}
    long = {**raw[6], "problem_id": "long", "problem": "What? " * 500}
    more = [gone, *raw[:7], long, *raw[7:]]
    (world.folder / "begun.jsonl").write_text("".join(json.dumps(record) + "\n" for record in more))
    arguments += ["--offline", "--max-reject-share", "0.5"]
    printed = data_tool("generate", world.folder / "begun.jsonl", *arguments, cwd=world.folder)
    assert "generate: 14 records read, 12 kept" in printed
    assert parts(world.folder / "begun") == parts(built / "1-generate")
    rejects = {line["record"]: line for line in lines(world.folder / "begun" / "rejects.jsonl")}
    assert rejects.keys() == {"gone", "long"}
    assert rejects["gone"]["reason"] == "missing file"
    assert rejects["long"]["reason"] == "refused"
    assert "longer than the maximum model length" in rejects["long"]["message"]
    assert served(config) == before


def served(config: Path) -> int:
    """How many requests the server has answered."""
    server = yaml.safe_load(config.read_text())["generate"]["base_urls"][0].removesuffix("/v1")
    with urllib.request.urlopen(f"{server}/metrics", timeout=10) as reply:
        counts = [line for line in reply.read().decode().splitlines() if line.startswith("vllm:request_success_total")]
    return round(sum(float(line.split()[-1]) for line in counts))
