# SPDX-License-Identifier: Apache-2.0
"""The checks of one run, on the quickstart's data and model: clean when all is there, and a planted fault is named."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import make_data
import pytest

from verl_p2r.media import torchvision_ops
from verl_p2r.plugin.doctor import _needs_flash_attention, run
from verl_p2r.plugin.doctor.finding import Finding
from verl_p2r.plugin.doctor.host import Disk
from verl_p2r.plugin.doctor.model_folder import check_model
from verl_p2r.plugin.doctor.run import (
    check_checkpoints,
    check_data,
    check_gpu_count,
    check_judge_answers,
    check_run,
)
from verl_p2r.plugin.plan.launches import Launch, launch_of

torchvision_ops.install()


@pytest.fixture(scope="module")
def whole_data(tmp_path_factory) -> Path:
    """The quickstart's data, a few of them."""
    folder = tmp_path_factory.mktemp("quickstart") / "data"
    sizes = ["--sft-videos=4", "--rows-per-video=3", "--sft-val=1", "--rl=9", "--val=4"]
    make_data.make(make_data.parse_args([str(folder), *sizes]))
    return folder


@pytest.fixture
def data(whole_data, tmp_path) -> Path:
    """A copy that a test may damage; paths in the rows start from its folder."""
    return shutil.copytree(whole_data, tmp_path / "data")


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def rl(data, model, tmp_path) -> Callable[..., Launch]:
    """`rl(*overrides)`: the quickstart's RL."""

    def launch(*overrides: str) -> Launch:
        files = [f"data.{split}_files={data}/rl_{split}.parquet" for split in ("train", "val")]
        sizes = ["data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
        sizes += ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4"]
        sizes += ["actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4"]
        paths = [f"actor_rollout_ref.model.path={model}", f"trainer.default_local_dir={tmp_path}/run"]
        return launch_of("p2r_ppo_cpu", [*files, *sizes, *paths, *overrides])

    return launch


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    """Findings by name."""
    return {finding.what: finding for finding in findings}


def only_fault(findings: Iterable[Finding]) -> Finding:
    """The one finding with a remedy."""
    (fault,) = [finding for finding in findings if finding.remedy]
    return fault


def test_a_run_that_has_everything_is_clean(rl, model):
    findings = by_name(check_run(rl(), gpus=1))
    assert [finding for finding in findings.values() if finding.remedy] == []
    assert findings["GPUs of the run"].found == "1 of 1 on this node"
    assert findings["model"].found == f"{model} (qwen2_5_vl)"
    assert findings["data: train"].found == "9 rows read, their media are there"
    assert findings["data: val"].found == "4 rows read, their media are there"
    assert findings["judge"].found == "facts needs no server"
    assert "disk: checkpoints of the run" in findings


def test_an_sft_run_is_checked_too(data, model, tmp_path):
    files = [f"data.{split}_files={data}/sft_{split}.parquet" for split in ("train", "val")]
    launch = launch_of("p2r_sft_cpu", [*files, f"model.path={model}", f"trainer.default_local_dir={tmp_path}/run"])
    findings = by_name(check_run(launch, None))
    assert [finding for finding in findings.values() if finding.remedy] == []
    assert findings["data: train"].found == "12 rows read, their media are there"
    assert "judge" not in findings


def test_fewer_gpus_than_asked_are_a_fault(rl):
    fault = only_fault(check_gpu_count(rl("trainer.n_gpus_per_node=4"), 2))
    assert fault.found == "4 of 2 on this node"
    assert "trainer.n_gpus_per_node=2" in fault.remedy


def test_missing_weights_are_named(model):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    fault = only_fault(check_model("model", str(model)))
    assert fault.found == f"{model} has no model-00002-of-00002.safetensors"
    assert "download or save the model again" in fault.remedy


MODEL_FAULTS = {
    "no folder": (lambda model: shutil.rmtree(model), "there is no such folder", "global_step_N/huggingface"),
    "no config": (lambda model: (model / "config.json").unlink(), "has no config.json", "the model's own folder"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "has no weights", "verl.model_merger"),
    "no processor": (
        lambda model: [path.unlink() for path in model.glob("*processor_config.json")],
        "has no preprocessor_config.json",
        "copy it from the model",
    ),
    "another family": (
        lambda model: (model / "config.json").write_text('{"model_type": "llama"}'),
        "model_type 'llama'",
        "qwen2_5_vl",
    ),
    "damaged index": (
        lambda model: (model / "model.safetensors.index.json").write_text('{"weight_m'),
        "has no readable model.safetensors.index.json",
        "download or save the model again",
    ),
    "damaged config": (lambda model: (model / "config.json").write_text("{"), "cannot be read", "again"),
}


def test_a_run_without_a_model_is_a_fault():
    fault = only_fault(check_model("model", None))
    assert fault.found == "no model is set"
    assert "model.path" in fault.remedy


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_planted_fault_of_the_model_is_named(model, fault):
    plant, found, remedy = MODEL_FAULTS[fault]
    plant(model)
    (finding,) = check_model("model", str(model))
    assert found in finding.found
    assert remedy in finding.remedy
    assert finding.fatal


def test_a_checkpoint_of_verl_points_to_the_folder_inside(tmp_path):
    (tmp_path / "huggingface").mkdir()
    (finding,) = check_model("model", str(tmp_path))
    assert "the folder huggingface" in finding.remedy


@pytest.mark.parametrize(("offline", "fatal"), [("1", True), ("0", False)])
def test_a_model_of_the_hub_is_looked_for_in_its_cache(monkeypatch, tmp_path, model, offline, fatal):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    (finding,) = check_model("model", "Qwen/Qwen2.5-VL-7B-Instruct")
    assert "not in the Hub's cache" in finding.found
    assert "hf download Qwen/Qwen2.5-VL-7B-Instruct" in finding.remedy
    assert finding.fatal is fatal
    cached = tmp_path / "hub" / "models--Qwen--Qwen2.5-VL-7B-Instruct"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    shutil.copytree(model, cached / "snapshots" / "abc")
    (finding,) = check_model("model", "Qwen/Qwen2.5-VL-7B-Instruct")
    assert not finding.remedy


def test_data_that_are_not_there_are_named(rl, data):
    (data / "rl_val.parquet").unlink()
    fault = only_fault(check_data(rl(), None))
    assert (fault.what, fault.found) == ("data: val", f"{data}/rl_val.parquet: there is no such file")
    assert "data.val_files" in fault.remedy


def test_media_that_are_not_there_are_named(rl, model, whole_data, tmp_path):
    root = shutil.copytree(whole_data, tmp_path / "moved")
    records = [json.loads(line) for line in (root / "records" / "rl_train.jsonl").read_text().splitlines()]
    for record in records:
        record["path"] = Path(record["path"]).name
    (root / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    here = [f"data.train_files={root}/rows.jsonl", f"data.p2r.media_root={root}/videos", "data.val_files=null"]
    assert not any(finding.remedy for finding in check_data(rl(*here), model))
    for video in (root / "videos").iterdir():
        video.unlink()
    fault = only_fault(check_data(rl(*here), model))
    assert "9 of 9 rows rejected" in fault.found
    assert f"relative paths start from {root}/videos" in fault.remedy
    fault = only_fault(check_data(rl(*here, f"data.p2r.media_root={root}/nowhere"), model))
    assert fault.found == f"{root}/nowhere: there is no such folder"


def test_a_judge_that_answers_is_fine_and_a_silent_one_is_a_fault(rl, judge_server):
    ours = ["p2r/judge=openai", "algorithm.p2r.judge.kwargs.model=judge"]
    url = f"algorithm.p2r.judge.kwargs.base_urls=[{judge_server.base_url}]"
    (finding,) = check_judge_answers(rl(*ours, url))
    assert not finding.remedy
    assert judge_server.base_url in finding.found
    fault = only_fault(check_judge_answers(rl("p2r/judge=openai", "algorithm.p2r.judge.kwargs.model=other", url)))
    assert "other" in fault.found
    judge_server.kill()
    fault = only_fault(check_judge_answers(rl(*ours, url)))
    assert "start the server" in fault.found
    assert "JUDGE_URLS" in fault.remedy
    assert fault.fatal


def test_the_judge_is_not_asked_where_no_run_would_ask_it(rl):
    ours = ["p2r/judge=openai", "algorithm.p2r.judge.kwargs.model=judge"]
    assert not list(check_judge_answers(rl(*ours, "algorithm.p2r.perception.enabled=False")))


def test_a_model_that_verl_serves_is_not_asked_before_the_run(rl):
    members = "{text:{name:verl},facts:{name:facts}}"
    judge = ["p2r/judge=all", "~algorithm.p2r.judge.kwargs.members", f"+algorithm.p2r.judge.kwargs.members={members}"]
    (finding,) = check_judge_answers(rl(*judge))
    found = "all, which is checked when the run starts: verl serves a model during the run"
    assert (finding.found, finding.remedy) == (found, "")


def test_keeping_all_checkpoints_is_a_warning(rl, monkeypatch):
    (finding,) = check_checkpoints(rl("trainer.max_actor_ckpt_to_keep=null", "trainer.save_freq=5"))
    assert "because all are kept" in finding.found
    assert "set trainer.max_actor_ckpt_to_keep" in finding.remedy
    assert not finding.fatal
    monkeypatch.setattr(run, "disk_of", lambda use, folder, setting: Disk(use, folder, 1000, 2000, setting))
    assert only_fault(check_checkpoints(rl("trainer.max_actor_ckpt_to_keep=null", "trainer.save_freq=5"))).fatal
    assert "because all" not in only_fault(check_checkpoints(rl("trainer.save_freq=-1"))).found


def test_a_disk_without_room_for_the_checkpoints_is_a_fault(rl, monkeypatch, model):
    from verl_p2r.planner.model_shape import find_shape

    monkeypatch.setattr(run, "disk_of", lambda use, folder, setting: Disk(use, folder, 1000, 2000, setting))
    launch = rl("trainer.max_actor_ckpt_to_keep=2")
    fault = only_fault(check_checkpoints(launch))
    assert (fault.what, fault.fatal) == ("disk: checkpoints of the run", True)
    assert "2 + 1 of" in fault.found
    params = find_shape(str(model))[0].params
    job = run.plan_of(launch, run.Options(rows=0)).job
    # float32: weights, two moments of the optimizer, and the weights again for transformers
    assert run.checkpoint_bytes(launch, job) == 4 * params * (1 + 2 + 1)


def test_a_run_says_whether_it_needs_flash_attention(rl):
    assert not _needs_flash_attention(rl())  # the CPU config has sdpa
    gpu = launch_of("p2r_ppo", [])
    assert _needs_flash_attention(gpu)
    without = ["trainer.p2r.shared_prefix=True", "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"]
    assert not _needs_flash_attention(launch_of("p2r_ppo", without))
