# SPDX-License-Identifier: Apache-2.0
"""Workflows and issue forms: they parse, call make targets that exist, and ask for what a report needs."""

import re

import pytest
import yaml
from paths import ROOT

import verl_p2r

GITHUB = ROOT / ".github"


@pytest.mark.parametrize("path", sorted((GITHUB / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_a_workflow_calls_make_targets_that_exist(path):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflow = yaml.safe_load(path.read_text())
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    called = {word for run in runs if run.startswith("make ") for word in run.split()[1:]}
    assert called
    assert called <= targets | {".venv/installed"}


def test_ci_tests_run_on_every_supported_python():
    workflow = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


def test_bug_report_form_requires_doctor_output():
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    (doctor,) = [field for field in form["body"] if field["id"] == "doctor"]
    assert "verl-p2r doctor" in doctor["attributes"]["label"]
    assert doctor["validations"]["required"]


def test_the_version_is_written_in_one_place():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert 'version = {attr = "verl_p2r.__version__"}' in project
    assert not re.search(r'^version = "', project, re.MULTILINE)
    assert f"({verl_p2r.__version__})" in (ROOT / "CHANGELOG.md").read_text() or (
        f"## {verl_p2r.__version__} (" in (ROOT / "CHANGELOG.md").read_text()
    )
