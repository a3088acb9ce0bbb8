# SPDX-License-Identifier: Apache-2.0
"""`examples/smoke_gpu.sh`, as far as a machine without a GPU can: its commands compose, its 3B has the published size,
its report reads what verl writes, and without a GPU it says so.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from example_scripts import EXAMPLES, media_tokens, read, rename_as_verls_worker_does
from omegaconf import OmegaConf
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

from verl_p2r.data.settings import DataSettings
from verl_p2r.media.families import QWEN2_5_VL
from verl_p2r.media.plan import VideoInfo, VisionSpec, plan_video
from verl_p2r.plugin.rl.trainer import check_config

sys.path.insert(0, str(EXAMPLES))
import smoke_gpu

STUB = """#!/bin/sh
printf '%s\\0' "$(basename "$0")" "$@" >>'{said}'
printf '\\1' >>'{said}'
"""


@pytest.fixture(scope="module", params=["out", "出 (1), a=b #2 it's $x"])
def commands(request, tmp_path_factory) -> list[list[str]]:
    """What the script calls, in order, on a machine where all of it succeeds."""
    folder = tmp_path_factory.mktemp("smoke")
    stubs, said = folder / "bin", folder / "said"
    stubs.mkdir()
    for name in ("python", "torchrun"):
        (stubs / name).write_text(STUB.format(said=said))
        (stubs / name).chmod(0o755)
    env = {"PATH": f"{stubs}:/usr/bin:/bin", "HOME": str(folder), "OUT": str(folder / request.param)}
    done = subprocess.run(["bash", EXAMPLES / "smoke_gpu.sh", "data.seed=3"], env=env, timeout=60, check=False)
    assert done.returncode == 0
    return [call.split("\0")[:-1] for call in said.read_text().split("\1")[:-1]]


def test_smoke_script_runs_commands_in_order(commands):
    names = [Path(c[1]).name if c[1].endswith(".py") else c[c.index("-m") + 1] for c in commands]
    verbs = [c[2] for c in commands if c[1].endswith("smoke_gpu.py")]
    ppo = "verl.trainer.main_ppo"
    made = ["smoke_gpu.py", "make_data.py", "make_model.py", "smoke_gpu.py", "smoke_gpu.py"]
    assert names == [*made, "verl.trainer.sft_trainer", ppo, ppo, ppo, "smoke_gpu.py"]
    assert verbs == ["check", "model", "data", "report"]


def test_smoke_script_configs_pass_verl_and_our_validation(commands, tiny_model):
    sft, *rl = [read(command) for command in commands if "-m" in command]
    sft.config.model.path = str(tiny_model)
    OmegaConf.resolve(sft.config)
    for node in ("model", "engine", "optim", "checkpoint", "profiler"):
        omega_conf_to_dataclass(sft.config[node])
    for run in rl:
        config = run.config
        assert not [override for override in run.overrides if override.startswith(("+", "~"))]
        config.actor_rollout_ref.model.path = str(tiny_model)
        OmegaConf.resolve(config)
        validate_config(config, need_reference_policy(config), need_critic(config))
        assert check_config(config).judge.name == "facts"
        rename_as_verls_worker_does(config.actor_rollout_ref.ref)
        for node in ("actor", "ref", "rollout", "model"):
            omega_conf_to_dataclass(config.actor_rollout_ref[node])
        whole = config.data.max_prompt_length + config.data.max_response_length
        assert whole <= config.actor_rollout_ref.rollout.max_model_len


def test_3b_smoke_runs_differ_only_in_algorithm_with_paper_shapes(commands):
    ours, theirs = [read(command).config for command in commands if command[1:3] == ["-m", "verl.trainer.main_ppo"]][1:]
    assert (ours.algorithm.adv_estimator, theirs.algorithm.adv_estimator) == ("pa_grpo", "grpo")
    assert ours.data.seed == theirs.data.seed == 3
    assert ours.actor_rollout_ref.rollout.n == 8
    media = DataSettings.from_mapping(ours.data.p2r).media.train
    spec = VisionSpec(QWEN2_5_VL, 14, 2, 2, (56 * 56, 12845056), (56 * 56, 12845056))
    clip = VideoInfo(smoke_gpu.RATE * smoke_gpu.SECONDS, float(smoke_gpu.RATE), smoke_gpu.SIDE, smoke_gpu.SIDE)
    plan = plan_video(media.fill({"video": "a.mp4"}), clip, spec)
    assert len(plan.indices) == media.max_frames == 16
    assert 0.85 * media_tokens(media, spec) <= plan.tokens <= media_tokens(media, spec)  # 8 grids of at most 128
    for config in (ours, theirs):
        config.algorithm.adv_estimator = config.trainer.default_local_dir = config.trainer.experiment_name = None
    assert ours == theirs


def test_3b_smoke_model_has_published_size_and_vocabulary():
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    tokenizer = smoke_gpu.tokenizer_3b()
    assert len(tokenizer) == smoke_gpu.VOCABULARY == 151936
    assert tokenizer.decode([151935])
    assert tokenizer("red").input_ids == smoke_gpu.tokenizer_3b().convert_tokens_to_ids(tokenizer.tokenize("red"))
    with torch.device("meta"):
        network = Qwen2_5_VLForConditionalGeneration(smoke_gpu.config_3b(tokenizer))
    network.tie_weights()
    assert network.num_parameters() == 3_754_622_976  # the parameters of Qwen/Qwen2.5-VL-3B-Instruct


def test_smoke_videos_have_required_length_and_size(tmp_path, clips):
    import av
    import pandas as pd

    table = pd.DataFrame([{"prompt": "p", "videos": [{"video": "small.mp4"}]}] * 3)
    table.to_parquet(tmp_path / "rl_train.parquet")
    smoke_gpu.data(tmp_path, tmp_path / "out", rows=2)
    written = pd.read_parquet(tmp_path / "out" / "rl.parquet")
    assert len(written) == 2
    with av.open(written.videos[0][0]["video"]) as clip:
        stream = clip.streams.video[0]
        assert (stream.frames, stream.width, stream.average_rate) == (64, 336, 8)


def line(step: int, seconds: float, **more: float) -> str:
    """A line as verl's file logger writes it; the keys and their mixture are a real run's."""
    data = {
        "actor/perf/max_memory_allocated_gb": 2.094379425048828,
        "actor/perf/cpu_memory_used_gb": 10.5137939453125,
        "perf/mfu/actor": 0.04131016326778242,
        "response_length/mean": 26.6640625,
        "timing_s/gen": 0.6 * seconds,
        "timing_s/old_log_prob": 0.1 * seconds,
        "timing_s/adv": 0.0837273729998742,
        "timing_s/update_actor": 0.2 * seconds,
        "timing_s/update_weights": 0.06303316799994718,
        "timing_s/step": seconds,
        "timing_per_token_ms/gen": 2.3584468866100057,
        "perf/total_num_tokens": 13957,
        "perf/throughput": 13957 / seconds,
        **more,
    }
    return json.dumps({"step": step, "data": data})


def write(folder: Path, name: str, lines: list[str]) -> None:
    (folder / name).mkdir()
    validation = json.dumps({"step": 0, "data": {"val-core/toy_motion/colour/acc/mean@1": 0.5}})
    (folder / name / "metrics.jsonl").write_text("\n".join([validation, *lines]) + "\n")


@pytest.mark.parametrize(("ours", "within"), [(10.1, True), (10.5, False), (9.7, False)])
def test_smoke_report_compares_medians_after_warm_up(ours, within, tmp_path, capsys):
    write(tmp_path, "pa_grpo", [line(1, 99.0), line(2, 50.0), line(3, ours), line(4, ours), line(5, 30.0)])
    write(tmp_path, "grpo", [line(1, 99.0), line(2, 50.0), line(3, 10.0), line(4, 10.0), line(5, 10.0)])
    smoke_gpu.report(tmp_path)
    shown = capsys.readouterr().out.splitlines()
    last = json.loads(shown[-1])
    assert last["ratio"] == pytest.approx(ours / 10, abs=1e-4)
    assert last["within_target"] is within
    theirs = last["runs"]["grpo"]
    assert theirs["step"] == 10
    assert theirs["gen"] == 6
    assert theirs["other"] == pytest.approx(10 - 6 - 1 - 2 - 0.0837273729998742 - 0.06303316799994718)
    assert theirs["tokens_per_s"] == pytest.approx(1395.7)
    assert theirs["memory_gb"] == pytest.approx(2.0944, abs=1e-4)
    assert "ref" not in theirs  # no KL loss in these files
    assert any("update_actor" in row for row in shown[:-1])


def test_smoke_report_refuses_run_without_steps_after_warm_up(tmp_path):
    write(tmp_path, "pa_grpo", [line(1, 9.0), line(2, 9.0)])
    with pytest.raises(SystemExit, match=re.escape("metrics.jsonl: no training step after the first 2")):
        smoke_gpu.report(tmp_path)
    with pytest.raises(SystemExit, match="no training step"):
        smoke_gpu.read(tmp_path / "nothing.jsonl")


def test_smoke_check_fails_without_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        smoke_gpu.check()
