# SPDX-License-Identifier: Apache-2.0
"""A few real steps of SFT and RL on a CPU: verl's entrypoints, Ray, TransferQueue, a vLLM server, mp4 files.

Prints how long each run took. A run that hangs is killed after its limit, and fails.
"""

import contextlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from judge_server import sha
from paths import QUICKSTART
from safetensors.torch import load_file

from verl_p2r.judge import KNOWN_REQUESTS, build_judge_prompt
from verl_p2r.judge.guards import as_data
from verl_p2r.template import parse_response

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("no_segments_left")]

SFT_STEPS, RL_STEPS = 12, 2
LIMIT = 600  # seconds


def run(
    name: str,
    command: list[str],
    folder: Path,
    ok: bool = True,
    each: Callable[[subprocess.Popen], None] = lambda process: None,
    **env: str,
) -> str:
    """Run a command of the quickstart, return its output; its exit code must be zero, or must not be.

    `each` is called every other second with the running process.
    """
    start = time.monotonic()
    log = folder / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env={**os.environ, **env}, start_new_session=True
        )
        while (code := process.poll()) is None:
            if time.monotonic() - start > LIMIT:
                os.killpg(process.pid, 9)
                pytest.fail(f"{name} did not end within {LIMIT} s:\n{log.read_text(errors='replace')[-3000:]}")
            each(process)
            time.sleep(2)
    print(f"\n{name}: {time.monotonic() - start:.0f} s", flush=True)
    output = log.read_text(errors="replace")
    assert (code == 0) == ok, f"{name} ended with {code}:\n{output[-5000:]}"
    return output


def metrics(path: Path) -> dict[int, dict[str, float]]:
    """What verl's file logger wrote, by step."""
    steps: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        steps.setdefault(entry["step"], {}).update(entry["data"])
    return steps


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with a small task and an untrained model."""
    folder = tmp_path_factory.mktemp("e2e")
    small = ["--sft-videos", "16", "--rows-per-video", "4", "--rl", "16", "--val", "8"]
    run("data", [sys.executable, str(QUICKSTART / "make_data.py"), str(folder / "data"), *small], folder)
    run("model", [sys.executable, str(QUICKSTART / "make_model.py"), str(folder / "model")], folder)
    return folder


@pytest.fixture(scope="module")
def sft(work) -> Path:
    """An SFT run of a few steps."""
    out = work / "sft"
    run(
        "sft",
        ["bash", str(QUICKSTART / "sft.sh")],
        work,
        DATA=str(work / "data"),
        MODEL=str(work / "model"),
        OUT=str(out),
        STEPS=str(SFT_STEPS),
    )
    return out


def rl(name: str, work: Path, sft: Path, out: Path, *overrides: str, steps: int = RL_STEPS, **kwargs) -> str:
    small = [
        "data.train_batch_size=4",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
    ]
    return run(
        name,
        ["bash", str(QUICKSTART / "rl.sh"), *small, *overrides],
        work,
        DATA=str(work / "data"),
        MODEL=str(sft / "checkpoints" / f"global_step_{SFT_STEPS}" / "huggingface"),
        OUT=str(out),
        STEPS=str(steps),
        **kwargs,
    )


@pytest.fixture(scope="module")
def rates(work) -> Path:
    """The RL rows with their clips at many frame rates, four frames of each: 0.13 to 4 seconds between two grids."""
    rows = pq.read_table(work / "data" / "rl_train.parquet").to_pylist()
    for row, rate in zip(rows, itertools.cycle((1, 2, 5, Fraction(24000, 1001), 30)), strict=False):
        [video] = row["videos"]
        source, target = video["video"], str(work / f"{row['extra_info']['index']}_at_{float(rate):.2f}.mp4")
        with av.open(source) as clip, av.open(target, "w") as container:
            stream, picture = container.add_stream("libx264", rate=rate), clip.streams.video[0]
            stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
            for frame in clip.decode(picture):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"))))
            container.mux(stream.encode())
        del video["fps"]
        video |= {"video": target, "nframes": 4}
    path = work / "rates.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def pa_grpo(work, sft, rates) -> Path:
    """A PA-GRPO run of a few steps, with the KL loss against a reference model."""
    out = work / "rl"
    rl(
        "rl",
        work,
        sft,
        out,
        f"data.train_files={rates}",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.actor.kl_loss_coef=0.04",
        f"trainer.save_freq={RL_STEPS}",
    )
    return out


def loads_whole(folder: Path) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    _, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report


def test_sft_learns_and_saves_a_model_that_loads(sft):
    steps = metrics(sft / "metrics.jsonl")
    losses = [steps[i]["train/loss"] for i in range(1, SFT_STEPS + 1)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(math.isfinite(steps[i]["train/grad_norm"]) for i in range(1, SFT_STEPS + 1))
    assert math.isfinite(steps[SFT_STEPS]["val/loss"])
    loads_whole(sft / "checkpoints" / f"global_step_{SFT_STEPS}" / "huggingface")


def test_trainer_and_rollout_log_probs_agree(pa_grpo):
    steps = metrics(pa_grpo / "metrics.jsonl")
    assert all(steps[i]["training/rollout_actor_probs_pearson_corr"] >= 0.999 for i in range(1, RL_STEPS + 1))


def test_trainer_and_rollout_log_probs_agree_with_shared_prefix(work, sft, rates):
    """Old log-probabilities, the reference's and the update, each over one copy of a prompt."""
    out = work / "rl_shared_prefix"
    rl(
        "rl_shared_prefix",
        work,
        sft,
        out,
        f"data.train_files={rates}",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "trainer.p2r.shared_prefix=True",
        "trainer.save_freq=-1",
    )
    steps = metrics(out / "metrics.jsonl")
    for i in range(1, RL_STEPS + 1):
        assert steps[i]["training/rollout_actor_probs_pearson_corr"] >= 0.999
        assert math.isfinite(steps[i]["actor/grad_norm"])
    assert abs(steps[1]["actor/kl_loss"]) < 1e-6  # the first update's policy is the reference


def test_rl_logs_metrics_of_both_processes_and_finite_gradients(pa_grpo):
    from verl_p2r.plugin.rl.metrics import PARTS, PROCESSES

    steps = metrics(pa_grpo / "metrics.jsonl")
    wanted = [f"p2r/{process}/{part}" for process in PROCESSES for part in PARTS]
    wanted += ["p2r/collapse/perception", "p2r/collapse/reasoning", "p2r/collapse/combined", "p2r/no_verdict"]
    for i in range(1, RL_STEPS + 1):
        assert all(math.isfinite(steps[i][name]) for name in [*wanted, "actor/grad_norm", "actor/kl_loss"])
    validation = {name for name in steps[0] if name.startswith("val-")}
    for key in ("perception_accuracy", "reasoning_format", "perception_tokens"):
        assert any(f"/{key}/mean@1" in name for name in validation), key


def test_dumped_rl_rollouts_hold_tokens_and_advantages_without_placeholders(pa_grpo):
    rows = [json.loads(line) for line in (pa_grpo / "rollouts" / "1.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    for row in rows:
        assert len(row["tokens"]) == len(row["advantages"]) == row["perception_tokens"] + row["reasoning_tokens"]
        assert not {"<|video_pad|>", "<|image_pad|>"} & set(row["tokens"])


def test_rl_saves_a_model_that_loads(pa_grpo):
    loads_whole(pa_grpo / "checkpoints" / f"global_step_{RL_STEPS}" / "actor" / "huggingface")


def test_rl_resumes_from_its_checkpoint(work, sft, pa_grpo):
    more = RL_STEPS + 1
    rl("resume", work, sft, pa_grpo, "trainer.val_before_train=False", f"trainer.save_freq={more}", steps=more)
    assert set(metrics(pa_grpo / "metrics.jsonl")) == {more}
    assert (pa_grpo / "metrics.1.jsonl").exists()


def test_colocate_async_trains_without_changing_frozen_vision_tower(work, sft):
    out = work / "colocate"
    mode = ["trainer.v1.trainer_mode=p2r_colocate_async", "trainer.p2r.shared_prefix=True"]
    mode += ["actor_rollout_ref.actor.freeze_vision_tower=True", "actor_rollout_ref.actor.use_kl_loss=True"]
    rl("colocate_async", work, sft, out, *mode, "trainer.val_before_train=False", f"trainer.save_freq={RL_STEPS}")
    steps = metrics(out / "metrics.jsonl")
    assert "p2r/collapse/perception" in steps[RL_STEPS]
    assert steps[RL_STEPS]["training/rollout_actor_probs_pearson_corr"] >= 0.999
    before = load_file(sft / "checkpoints" / f"global_step_{SFT_STEPS}" / "huggingface" / "model.safetensors")
    after = load_file(out / "checkpoints" / f"global_step_{RL_STEPS}" / "actor" / "huggingface" / "model.safetensors")
    kept = {name for name in before if torch.equal(before[name], after[name])}
    tower = {name for name in before if "visual." in name}
    assert tower
    assert tower <= kept < set(before)


def judged_by(server, *more: str) -> list[str]:
    """Overrides that train with the judge `openai` behind a server, without guards, so that it is asked about all."""
    return [
        "p2r/judge=openai",
        "algorithm.p2r.judge.kwargs.model=judge",
        f"algorithm.p2r.judge.kwargs.base_urls=[{server.base_url}]",
        "algorithm.p2r.judge.guards={answer_only:False,copied_question:False}",
        *more,
    ]


def test_rl_takes_perception_rewards_from_http_judge(work, sft, judge_server):
    """The judge's rule, a word in the observation, is what each rollout's perception accuracy shows, faults and all."""
    rule = r"\b(red|green|two)\b"
    key = "sk-of-this-test-alone"
    shares = {"500": 0.1, "429": 0.1, "drop": 0.1, "truncated": 0.1}
    judge_server.control(yes_when=rule, api_key=key, shares=shares, retry_after=0.1, latency=0.1)
    out = work / "openai"
    output = rl("openai", work, sft, out, *judged_by(judge_server), OPENAI_API_KEY=key)
    steps = metrics(out / "metrics.jsonl")
    assert all(steps[i]["p2r/no_verdict"] == 0 for i in range(1, RL_STEPS + 1))
    rows = [
        json.loads(line)
        for i in range(1, RL_STEPS + 1)
        for line in (out / "rollouts" / f"{i}.jsonl").read_text().splitlines()
    ]
    texts = [parse_response(row["output"]).observation for row in rows]
    for row, text in zip(rows, texts, strict=True):
        assert row["perception_accuracy"] == float(bool(text and re.search(rule, as_data(text))))
    asked = Counter(call.prompt for call in judge_server.calls() if call.outcome == "ok")
    known = {sha(build_judge_prompt(request)) for request in KNOWN_REQUESTS.values()}
    assert known <= set(asked)  # the health check
    assert len({text for text in texts if text}) >= 1
    assert len(set(asked) - known) >= len({as_data(text) for text in texts if text})
    written = [path for path in [work / "openai.log", *out.rglob("*")] if path.is_file() and path.suffix != ".pt"]
    assert key not in output
    assert not [path for path in written if key.encode() in path.read_bytes()]


def test_rl_without_a_judge_is_rewarded_by_the_policys_second_answer(work, sft):
    """The second answers come from the same vLLM server; the rows that train hold the first responses only."""
    out = work / "self"
    rl("self", work, sft, out, "trainer.val_before_train=False", JUDGE="self")
    steps = metrics(out / "metrics.jsonl")
    rows = []
    for i in range(1, RL_STEPS + 1):
        assert steps[i]["p2r/no_verdict"] == 0
        assert steps[i]["training/rollout_actor_probs_pearson_corr"] >= 0.999
        rows += [json.loads(line) for line in (out / "rollouts" / f"{i}.jsonl").read_text().splitlines()]
    asked = [row for row in rows if row["judge_seconds"] is not None]
    assert asked
    for row in asked:
        assert parse_response(row["output"]).observation
        assert row["judge_prompt_tokens"] > 0 < row["judge_share_of_sampling"]
        assert 0 < row["judge_completion_tokens"] <= 24
        assert row["judge_agrees"] in (0, 1)  # with the facts judge
    for row in rows:
        assert len(row["tokens"]) == len(row["advantages"]) == row["perception_tokens"] + row["reasoning_tokens"]
        assert row["perception_accuracy"] == 0 or row in asked


def test_unreachable_judge_stops_run_before_first_rollout(work, sft, judge_server):
    judge_server.kill()
    hurry = [f"algorithm.p2r.judge.kwargs.{name}=2" for name in ("connect_timeout_s", "timeout_s", "deadline_s")]
    output = rl("dead_judge", work, sft, work / "dead_judge", *judged_by(judge_server, *hurry), ok=False)
    assert "the judge 'openai' fails its health check" in output
    assert judge_server.base_url in output
    assert not (work / "dead_judge" / "rollouts").exists()


def test_val_only_run_stops_after_validation(work, sft):
    out = work / "val_only"
    rl("val_only", work, sft, out, "trainer.val_only=True")
    assert set(metrics(out / "metrics.jsonl")) == {0}


def test_stock_agent_loop_makes_rollout_and_trainer_log_probs_disagree(work, sft):
    """Without our agent loop and vLLM plugin, trainer and rollout disagree: the figure that ours must keep at 0.999."""
    out = work / "stock"
    stock = "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null"
    rl("stock", work, sft, out, stock, "trainer.val_before_train=False", steps=1, VLLM_PLUGINS="verl_p2r_cpu")
    assert metrics(out / "metrics.jsonl")[1]["training/rollout_actor_probs_pearson_corr"] < 0.999


def test_a_killed_rollout_worker_ends_the_run(work, sft):
    """Whatever waits for the dead worker: an error or, where verl would wait for ever, the watchdog."""

    def kill_worker(process: subprocess.Popen) -> None:
        if not (out / "metrics.jsonl").exists() or not metrics(out / "metrics.jsonl"):
            return
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended, or is a zombie, since it was listed
                if (child.cmdline() or [""])[0].startswith("VLLM::"):
                    child.kill()

    out = work / "killed"
    limit = "trainer.p2r.stall_timeout_s=45"
    output = rl("killed", work, sft, out, limit, "trainer.val_before_train=False", steps=50, ok=False, each=kill_worker)
    assert "verl_p2r watchdog" in output or "EngineDeadError" in output


def test_run_fails_with_name_and_row_of_missing_video(work, sft):
    table = pq.read_table(work / "data" / "rl_train.parquet").to_pylist()
    table[3]["videos"][0]["video"] = str(work / "gone.mp4")
    bad = work / "bad"
    bad.mkdir()
    pq.write_table(pa.Table.from_pylist(table), bad / "rl_train.parquet")
    output = rl("bad_input", work, sft, work / "bad_run", f"data.train_files={bad / 'rl_train.parquet'}", ok=False)
    assert "gone.mp4: no such file" in output
    assert "row 3" in output
