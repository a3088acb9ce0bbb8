# SPDX-License-Identifier: Apache-2.0
"""The files that start a cluster: what each node calls, in which order and with which environment.

`ray`, `python`, `srun` and the rest are stand-ins that write down what they were called with; one test is a real Ray.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest
import yaml
from example_scripts import EXAMPLES

CLUSTER = EXAMPLES / "cluster"
ROOT = EXAMPLES.parent
STUB = """#!{python} -S
import json, os, pathlib, sys, time
name, state = pathlib.Path(sys.argv[0]).name, pathlib.Path({state!r})
with open(state / "journal.jsonl", "a") as journal:
    journal.write(json.dumps({{"name": name, "argv": sys.argv[1:], "env": dict(os.environ)}}) + chr(10))
{body}
"""
RAY = """
head, joined = state / "head", state / f"joined{os.environ['NODE_RANK']}"
if sys.argv[1] == "status":
    sys.exit(not head.exists())
mine = head if "--head" in sys.argv else joined
joined.touch(), mine.touch()
import signal
signal.signal(signal.SIGTERM, lambda *_: (mine.unlink(), sys.exit(0)))
while head.exists():
    time.sleep(0.02)
"""
PYTHON = """
if sys.argv[1] == "-c":  # have all nodes joined?
    sys.exit(len(list(state.glob("joined*"))) < int(sys.argv[-1]))
"""
SRUN = """
import subprocess
if "hostname" in sys.argv:
    node = sys.argv[sys.argv.index("-w") + 1]
    print("fe80::1 10.0.0." + node[-1])
    sys.exit()
command = sys.argv[sys.argv.index("bash"):]
tasks = [subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(i)}) for i in range(int(os.environ["NODES"]))]
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
if sys.argv[1] == "show":
    print("\\n".join(f"node{i + 1}" for i in range(int(os.environ["NODES"]))))
"""
# A judge takes a while to load; meanwhile its node has long seen the head.
VLLM = """
time.sleep(2)
(state / "healthy").touch()
time.sleep(60)
"""
CURL = "sys.exit(not (state / 'healthy').exists())"


@pytest.fixture
def stage(tmp_path):
    """`stage(**bodies)`: stand-ins with these bodies before all else on PATH; returns the environment."""

    def make(**bodies: str) -> dict[str, str]:
        stubs = tmp_path / "bin"
        stubs.mkdir()
        state = str(tmp_path)
        for name in ("ray", "python", "torchrun", "vllm", "curl", "srun", "scontrol"):
            body = {
                "ray": RAY,
                "python": PYTHON,
                "srun": SRUN,
                "scontrol": SCONTROL,
                "vllm": VLLM,
                "curl": CURL,
            } | bodies
            (stubs / name).write_text(STUB.format(python=sys.executable, state=state, body=body.get(name, "")))
            (stubs / name).chmod(0o755)
        (stubs / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.1\n")
        (stubs / "sleep").chmod(0o755)
        return {"PATH": f"{stubs}:/usr/bin:/bin", "HOME": str(tmp_path)}

    return make


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def calls(folder: Path, name: str, *first: str) -> list[dict]:
    return [c for c in journal(folder) if c["name"] == name and c["argv"][: len(first)] == list(first)]


def nodes(count: int, env: dict[str, str], *arguments: str) -> list[int]:
    """Run node.sh on `count` nodes at once; their exit codes."""
    command = [shutil.which("bash"), str(CLUSTER / "node.sh"), *arguments]
    running = [
        subprocess.Popen(command, cwd=ROOT, env={**env, "NODE_RANK": str(rank)}, stderr=subprocess.DEVNULL)
        for rank in range(count)
    ]
    try:
        return [process.wait(timeout=60) for process in running]
    finally:
        for process in running:
            process.kill()


RL = {"SCRIPT": "examples/pa_grpo_7b_multinode.sh", "HEAD": "10.0.0.1", "NNODES": "2", "MODEL": "m"}


@pytest.mark.parametrize("name", ["node.sh", "slurm.sbatch"])
def test_cluster_scripts_are_valid_bash_with_header(name):
    text = (CLUSTER / name).read_text()
    assert subprocess.run(["bash", "-n", CLUSTER / name], check=False).returncode == 0
    assert text.startswith("#!/usr/bin/env bash\n# SPDX-License-Identifier: Apache-2.0\n")
    assert all(len(line) <= 120 for line in text.splitlines())


def test_nodes_join_ray_and_script_runs_once_on_head(stage, tmp_path):
    env = stage() | RL | {"OPENAI_API_KEY": "sk", "VERL_P2R_MEDIA_TIMEOUT": "300"}
    assert nodes(2, env, "trainer.save_freq=20") == [0, 0]
    [head] = calls(tmp_path, "ray", "start", "--head")
    assert head["argv"][2:] == ["--node-ip-address=10.0.0.1", "--port=6379", "--block"]
    [worker] = calls(tmp_path, "ray", "start", "--address=10.0.0.1:6379")
    for call, rank in ((head, "0"), (worker, "1")):  # what Ray's workers inherit on that node
        assert call["env"]["NODE_RANK"] == rank
        assert call["env"]["VERL_USE_EXTERNAL_MODULES"] == "verl_p2r.plugin"
        assert call["env"]["VERL_P2R_MEDIA_TIMEOUT"] == "300"
        assert call["env"]["OPENAI_API_KEY"] == "sk"
    [driver] = calls(tmp_path, "python", "-m", "verl.trainer.main_ppo")
    assert driver["env"]["NODE_RANK"] == "0"
    assert driver["env"]["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert "trainer.nnodes=2" in driver["argv"]
    assert driver["argv"][-1] == "trainer.save_freq=20"
    assert not [argument for argument in driver["argv"] if argument.split("=")[-1] == "sk"]
    everything = journal(tmp_path)
    assert everything.index(worker) < everything.index(driver)
    assert not calls(tmp_path, "ray", "stop")  # it would end the Ray of others on the node
    assert not (tmp_path / "head").exists()  # but this one has ended


def test_head_node_returns_exit_code_of_script(stage):
    fails = PYTHON + "\nsys.exit(3)"
    assert nodes(2, stage(python=fails) | RL) == [3, 0]


def test_a_node_that_ends_with_the_head_has_not_failed(stage):
    """The head goes while a node looks for it, which takes long on a busy machine: the look still finds it."""
    slow = RAY.replace("sys.exit(not head.exists())", "there = head.exists(); time.sleep(0.5); sys.exit(not there)")
    assert nodes(2, stage(ray=slow) | RL) == [0, 0]


def test_missing_node_is_reported_after_timeout(stage, tmp_path):
    env = stage() | RL | {"NODE_RANK": "0", "PATIENCE": "10"}
    done = subprocess.run(["bash", CLUSTER / "node.sh"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "node 0: a Ray cluster of 2 nodes did not come within 10 s" in done.stderr
    assert not calls(tmp_path, "python", "-m")


def test_judge_runs_on_separate_node(stage, tmp_path):
    env = stage() | RL | {"JUDGE_HOST": "10.0.0.3", "JUDGE_MODEL": "judge"}
    assert nodes(3, env) == [0, 0, 0]
    [judge] = calls(tmp_path, "vllm")
    assert judge["argv"][:2] == ["serve", "judge"]
    assert judge["env"]["NODE_RANK"] == "2"
    *_, asked = calls(tmp_path, "curl")
    assert asked["argv"][-1] == "http://10.0.0.3:8000/health"
    [driver] = calls(tmp_path, "python", "-m")
    assert "algorithm.p2r.judge.kwargs.base_urls=[http://10.0.0.3:8000/v1]" in driver["argv"]
    assert "algorithm.p2r.judge.kwargs.model='judge'" in driver["argv"]
    assert len(calls(tmp_path, "ray", "start")) == 2


@pytest.mark.parametrize(
    "script",
    [{"SCRIPT": "examples/sft_3b.sh"}, {"SCRIPT": "examples/ablation.sh", "ABLATION": "sft_only"}],
    ids=["sft_3b", "ablation"],
)
def test_sft_runs_torchrun_on_every_node_without_ray(script, stage, tmp_path):
    assert nodes(2, stage() | RL | script) == [0, 0]
    assert not calls(tmp_path, "ray")
    started = calls(tmp_path, "torchrun")
    assert sorted(call["env"]["NODE_RANK"] for call in started) == ["0", "1"]
    for call in started:
        wanted = ["--nnodes=2", "--rdzv_backend=c10d", "--rdzv_endpoint=10.0.0.1:29500"]
        assert call["argv"][:3] == wanted
        assert "trainer.nnodes=2" in call["argv"]
        assert call["env"]["VERL_USE_EXTERNAL_MODULES"] == "verl_p2r.plugin"


@pytest.mark.parametrize("lacking", ["SCRIPT", "HEAD", "NNODES", "NODE_RANK"])
def test_node_script_names_missing_variable(lacking, stage):
    env = stage() | RL | {"NODE_RANK": "0"}
    del env[lacking]
    done = subprocess.run(["bash", CLUSTER / "node.sh"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert lacking in done.stderr


SLURM = {"SLURM_JOB_NODELIST": "node[1-3]", "SLURM_JOB_ID": "7", "NODES": "3"}


@pytest.mark.parametrize("judge", [False, True])
def test_a_slurm_job_starts_every_node(judge, stage, tmp_path):
    env = stage() | SLURM | {"SCRIPT": RL["SCRIPT"], "MODEL": "m", "OUT": str(tmp_path / "out")}
    env |= {"JUDGE_NODE": "1", "JUDGE_MODEL": "judge"} if judge else {}
    done = subprocess.run(["bash", CLUSTER / "slurm.sbatch", "data.seed=3"], cwd=ROOT, env=env, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "out" / "logs").is_dir()
    [head] = calls(tmp_path, "ray", "start", "--head")
    assert head["argv"][2] == "--node-ip-address=10.0.0.1"  # the first node's, of IPv4
    workers = calls(tmp_path, "ray", "start", "--address=10.0.0.1:6379")
    assert sorted(call["env"]["NODE_RANK"] for call in workers) == (["1"] if judge else ["1", "2"])
    [driver] = calls(tmp_path, "python", "-m")
    assert f"trainer.nnodes={2 if judge else 3}" in driver["argv"]
    assert driver["argv"][-1] == "data.seed=3"
    if judge:
        assert "algorithm.p2r.judge.kwargs.base_urls=[http://10.0.0.3:8000/v1]" in driver["argv"]


def test_slurm_job_requeues_before_time_limit(stage, tmp_path):
    env = stage(python=PYTHON + "\ntime.sleep(60)") | SLURM
    env |= {"SCRIPT": RL["SCRIPT"], "MODEL": "m", "OUT": str(tmp_path / "out")}
    job = subprocess.Popen(["bash", CLUSTER / "slurm.sbatch"], cwd=ROOT, env=env, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while not ((tmp_path / "journal.jsonl").exists() and calls(tmp_path, "python", "-m")):
            assert time.monotonic() < until
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        job.wait(timeout=60)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
    assert [call["argv"] for call in calls(tmp_path, "scontrol", "requeue")] == [["requeue", "7"]]
    head = (CLUSTER / "slurm.sbatch").read_text()
    for option in ("--requeue", "--signal=B:USR1@120", "--open-mode=append", "--ntasks-per-node=1"):
        assert f"#SBATCH {option}\n" in head


@pytest.fixture(scope="module")
def sky() -> dict:
    return yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())


def test_skypilot_file_has_expected_keys(sky):
    assert set(sky) == {
        *("name", "num_nodes", "workdir", "resources", "envs", "secrets", "file_mounts", "setup", "run")
    }
    assert sky["resources"]["use_spot"]
    assert set(sky["resources"]["job_recovery"]) == {"strategy", "max_restarts_on_errors"}
    assert all(isinstance(value, str) for value in {**sky["envs"], **sky["secrets"]}.values())
    mounted = {mount["name"]: path for path, mount in sky["file_mounts"].items()}
    assert sky["envs"]["OUT"].startswith(mounted["${OUT_BUCKET}"])  # so that a new cluster finds the checkpoints
    assert sky["envs"]["MEDIA"].startswith(mounted["${DATA_BUCKET}"])


@pytest.mark.parametrize("judge", ["0", "1"])
def test_skypilot_run_section_starts_a_node(judge, sky, stage, tmp_path):
    env = stage() | sky["envs"] | sky["secrets"] | {"MODEL": "m", "JUDGE_NODE": judge, "HF_TOKEN": "hf"}
    env |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n10.0.0.3"}
    (tmp_path / "p2r" / "bin").mkdir(parents=True)
    (tmp_path / "p2r" / "bin" / "activate").touch()
    running = [
        subprocess.Popen(["bash", "-ec", sky["run"]], cwd=ROOT, env={**env, "SKYPILOT_NODE_RANK": str(rank)})
        for rank in range(3)
    ]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    [driver] = calls(tmp_path, "python", "-m")
    assert f"trainer.nnodes={3 - int(judge)}" in driver["argv"]
    assert "trainer.save_freq=20" in driver["argv"]
    assert driver["env"]["RAY_ADDRESS"] == "10.0.0.1:6479"
    assert driver["env"]["HF_TOKEN"] == "hf"
    assert "OPENAI_API_KEY" not in driver["env"]  # an empty one would count as set
    assert len(calls(tmp_path, "vllm")) == int(judge)


def test_every_cluster_file_variable_is_read_somewhere(sky):
    """What the files hand over is read by node.sh, by a script, by our code or by a library."""
    known = " ".join(path.read_text() for path in [*EXAMPLES.glob("*.sh"), CLUSTER / "node.sh"]) + sky["run"]
    known += " ".join(sky["file_mounts"][path]["name"] for path in sky["file_mounts"])
    libraries = {"HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY"}
    for name in {*sky["envs"], *sky["secrets"]} - libraries:
        assert re.search(rf"\$\{{?{name}\b", known), name
    written = re.findall(r"\b([A-Z][A-Z_]{2,})=", (CLUSTER / "ray_by_hand.md").read_text())
    for name in set(written) - libraries - {"HF_HOME"}:
        assert re.search(rf"\$\{{?{name}\b", known), name


TASK = """
import json, os, sys, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
look = ray.remote(num_cpus=0)(lambda: {name: os.environ.get(name) for name in sys_names})
print("SEEN" + json.dumps([
    ray.get(look.options(scheduling_strategy=On(node["NodeID"], False)).remote()) for node in ray.nodes()
]))
"""


@pytest.mark.slow
def test_ray_worker_inherits_environment_of_its_node(tmp_path):
    names = ["NODE_RANK", "OPENAI_API_KEY", "VERL_USE_EXTERNAL_MODULES", "VERL_P2R_MEDIA_TIMEOUT"]
    (tmp_path / "task.py").write_text(TASK.replace("sys_names", repr(names)))
    (tmp_path / "task.sh").write_text(f"exec python {tmp_path / 'task.py'}\n")
    env = {**os.environ, "SCRIPT": str(tmp_path / "task.sh"), "HEAD": "127.0.0.1", "NNODES": "2", "RAY_PORT": "6479"}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 1\n")
    (tmp_path / "bin" / "sleep").chmod(0o755)
    env |= {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{env['PATH']}",
        "PATIENCE": "300",
        "OPENAI_API_KEY": "sk",
    }
    env["RAY_AUTH_TOKEN"] = uuid.uuid4().hex  # for this cluster only; node.sh then says RAY_AUTH_MODE=token
    env["RAY_ARGS"] = "--num-cpus=1 --object-store-memory=100000000"
    env["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray_", dir="/tmp")  # a short path: sockets lie in it
    env.pop("RAY_ADDRESS", None)
    command = ["bash", str(CLUSTER / "node.sh")]
    worker = subprocess.Popen(command, env={**env, "NODE_RANK": "1"}, start_new_session=True)
    try:
        done = subprocess.run(
            command, env={**env, "NODE_RANK": "0"}, capture_output=True, text=True, timeout=400, check=False
        )
    finally:
        children = psutil.Process(worker.pid).children(recursive=True)
        for process in [worker, *children]:  # Ray's second node would wait a minute for the first
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(env["RAY_TMPDIR"], ignore_errors=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("SEEN")), None)
    assert done.returncode == 0, done.stderr
    left = Path("/tmp/ray/ray_current_cluster")  # where each `ray.init()` to come would look for a cluster
    assert not left.exists() or "6479" not in left.read_text()
    seen = sorted(json.loads(line.removeprefix("SEEN")), key=lambda node: node["NODE_RANK"])
    assert [node["NODE_RANK"] for node in seen] == ["0", "1"]
    for node in seen:
        assert list(node.values())[1:] == ["sk", "verl_p2r.plugin", "60"]
