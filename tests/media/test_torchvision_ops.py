# SPDX-License-Identifier: Apache-2.0
"""One module imports torchvision and qwen-vl-utils; so every module that opens media works when imported first."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from PIL import Image

DOOR = "torchvision_ops.py"
IMPORT = re.compile(r"^\s*(from|import) (torchvision|qwen_vl_utils)\b", re.M)


def test_one_module_imports_torchvision_and_qwen_vl_utils():
    files = [*(ROOT / "verl_p2r").rglob("*.py"), *(ROOT / "data_tools").rglob("*.py")]
    assert len(files) > 60
    assert [path.name for path in files if IMPORT.search(path.read_text(encoding="utf-8"))] == [DOOR]


@pytest.fixture
def records(tmp_path, make_clip) -> Path:
    """An image first, then a video, and the media in the file's folder."""
    Image.new("RGB", (64, 48), (200, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "b.mp4").write_bytes(make_clip(8, 4).read_bytes())
    common = {"problem": "What colour?", "problem_type": "free-form", "solution": "red"}
    rows = [{**common, "data_type": kind, "path": path} for kind, path in (("image", "a.png"), ("video", "b.mp4"))]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "r.jsonl"


def run(*arguments: str, cwd: Path) -> str:
    """Standard output of a new Python process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_view_command_embeds_pictures(records):
    run("-m", "data_tools", "view", records.name, "--out", "p.html", "--media-root", ".", cwd=records.parent)
    page = (records.parent / "p.html").read_text()
    assert "torchvision" not in page
    assert page.count("data:image/jpeg;base64,") > 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rl"])
def test_to_parquet_command_checks_media(records, kind):
    export = ("to-parquet", records.name, "--kind", kind, "--out", "out", "--media-root", ".", "--check-media")
    run("-m", "data_tools", *export, cwd=records.parent)
    manifest = json.loads((records.parent / "out" / "manifest.json").read_text())
    assert manifest["written"] == 2


@pytest.mark.slow
def test_generate_sends_media(records, judge_server):
    generate = ("generate", records.name, "--out", "out", "--media-root", ".", "--model", "judge")
    run("-m", "data_tools", *generate, "--base-url", judge_server.base_url, cwd=records.parent)
    assert json.loads((records.parent / "out" / "manifest.json").read_text())["written"] == 2


IN_PROCESS = {
    "probe": "from verl_p2r.media.probe import probe_element as f; f({'image': 'a.png'}); f({'video': 'b.mp4'})",
    "images": "from verl_p2r.media.images import fetch_image as f; f({'image': 'a.png'}, 14)",
    "decode": "from verl_p2r.media.decode import fetch_video as f; f({'video': 'b.mp4'}, 14)",
    "media": "from verl_p2r.media.families import QWEN3_VL; "
    "from verl_p2r.media.plan import VisionSpec, plan_image as f; p = (3136, 99999); "
    "f({}, (9, 9), VisionSpec(QWEN3_VL, 14, 2, 2, p, p))",
    "cache": "from verl_p2r.plugin.media.media_cache import Source as f; "
    "f('image', '{\"image\": \"a.png\"}', 14).decode()",
}


@pytest.mark.slow
@pytest.mark.parametrize("door", IN_PROCESS)
def test_each_media_module_works_when_imported_first(records, door):
    run("-c", IN_PROCESS[door], cwd=records.parent)
