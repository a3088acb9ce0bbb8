# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: the CPU platform, set before verl is imported, a folder for Ray, a tiny Qwen2.5-VL folder,
small clips.
"""

import atexit
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from paths import QUICKSTART

# Ray keeps sockets here, whose paths are limited to 107 bytes, and the address that `ray.init()` looks up. Each session
# has its own folder, so that no test depends on an earlier Ray or joins a cluster that runs on this machine.
TEMPORARY = tempfile.gettempdir()
RAY_FOLDER = tempfile.mkdtemp(prefix="ray", dir=TEMPORARY if len(TEMPORARY) <= 24 else "/tmp")
atexit.register(shutil.rmtree, RAY_FOLDER, ignore_errors=True)
os.environ.pop("RAY_ADDRESS", None)
os.environ.update(
    VERL_PLATFORM="cpu",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    RAY_TMPDIR=RAY_FOLDER,
    RAY_USAGE_STATS_ENABLED="0",
    VLLM_NO_USAGE_STATS="1",
    TORCHDYNAMO_DISABLE="1",
    OMP_NUM_THREADS="2",
)
os.environ.pop("FORCE_QWENVL_VIDEO_READER", None)  # tests that force a reader set it themselves
os.environ.pop("COLUMNS", None)  # likewise a width; pytest-xdist sets one in its workers
sys.path.insert(0, str(QUICKSTART))

import av  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from collected import COLLECTED, count  # noqa: E402
from judge_server import JudgeServer  # noqa: E402

import verl_p2r.plugin  # noqa: E402, F401  repairs torchvision before anything imports it


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count the tests before `-k` and `-m` remove some."""
    config.stash[COLLECTED] = count(items)


def write_clip(path: Path, frames: int, rate: Fraction | int, *, side: int = 112, start: int = 0) -> Path:
    """Write an mp4 whose frame i is a uniform grey of about 16 + 5 · (start + i), which encodes its index."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(frames):
            picture = np.full((side, side, 3), 16 + 5 * (start + i), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory) -> Callable[..., Path]:
    """`make_clip(frames, rate, side=112, start=0)`: write a clip into a session folder."""
    folder = tmp_path_factory.mktemp("clips")

    def make(frames: int, rate: Fraction | int, **kwargs) -> Path:
        return write_clip(folder / f"{len(list(folder.iterdir()))}.mp4", frames, rate, **kwargs)

    return make


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> dict[str, Path]:
    """Clips of 112 × 112 pixels by name: their frame rates and lengths differ."""
    folder = tmp_path_factory.mktemp("videos")
    shapes = {"slow": (8, 2), "quick": (8, 4), "film": (24, Fraction(24000, 1001)), "odd": (15, 5), "long": (21, 5)}
    return {name: write_clip(folder / f"{name}.mp4", frames, rate) for name, (frames, rate) in shapes.items()}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The quickstart's tiny Qwen2.5-VL with random weights, as a Hugging Face folder."""
    import make_model

    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model.save(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def no_segments_left() -> Iterator[None]:
    """The runs of a module, killed ones included, free their shared memory within half a minute of its end."""
    from verl_p2r.plugin import shm_usage

    before = set(shm_usage.FOLDER.iterdir())
    yield
    end = time.monotonic() + 30
    while (left := shm_usage.leftovers(settled=0).keys() - before) and time.monotonic() < end:
        time.sleep(1)
    assert not left


@pytest.fixture(scope="session")
def processor(tiny_model):
    """The tiny model's processor as verl's trainers make it, with the model's config bound to it."""
    from verl.utils import hf_processor

    return hf_processor(str(tiny_model))


@pytest.fixture(scope="session")
def idle_judge_servers() -> Iterator[list[JudgeServer]]:
    """Running servers that no test uses; they are reused because starting one takes half a second."""
    servers: list[JudgeServer] = []
    yield servers
    for server in servers:
        server.kill()


@pytest.fixture
def make_judge_server(idle_judge_servers, tmp_path_factory) -> Iterator[Callable[[], JudgeServer]]:
    """`make_judge_server()`: a judge behind real HTTP, in its own process, see `judge_server.py`; as many as needed."""
    held: list[JudgeServer] = []

    def make() -> JudgeServer:
        server = idle_judge_servers.pop() if idle_judge_servers else None
        held.append(server or JudgeServer(tmp_path_factory.mktemp("judge") / "journal.jsonl"))
        held[-1].reset()
        return held[-1]

    yield make
    idle_judge_servers.extend(held)


@pytest.fixture
def judge_server(make_judge_server) -> JudgeServer:
    """A judge behind real HTTP, see `judge_server.py`."""
    return make_judge_server()
