# SPDX-License-Identifier: Apache-2.0
"""`verl-p2r doctor`: clean on a sound installation, and on a broken one it names what is broken and what to do."""

import pytest
from typer.testing import CliRunner

from verl_p2r.plugin import doctor
from verl_p2r.plugin.cli import app
from verl_p2r.plugin.doctor import Finding, gpu_facts
from verl_p2r.plugin.hooks import hook_table

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

    def run(*arguments: str):
        kept = []
        examine = doctor.examine
        monkeypatch.setattr(doctor, "examine", lambda launch: kept.extend(examine(launch)) or kept)
        result = CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "60"})
        return result, {finding.what: finding for finding in kept}

    return run


@pytest.fixture
def installed(monkeypatch):
    """Leave out the checks of the installation, which start verl."""
    monkeypatch.setattr(doctor, "INSTALLATION", ())


def fatal(findings: dict[str, Finding]) -> list[str]:
    """Names of the findings that end the command with 1."""
    return [what for what, finding in findings.items() if finding.remedy and finding.fatal]


@pytest.mark.slow
def test_doctor_finds_no_problem_in_working_installation(run_doctor):
    result, findings = run_doctor()
    machine = ("shared memory", "open files", "disk", "Ray")  # of which this machine may have little
    assert [found for what, found in findings.items() if found.remedy and not what.startswith(machine)] == []
    assert result.exit_code == 0, result.output
    assert {*REGISTERED, "datasets and agent loop"} <= findings.keys()
    assert {f"hooks of {entry.file}" for entry in hook_table()} <= findings.keys()
    assert findings["platform"].found == "PlatformCPU"
    assert findings["rollout vllm"].found.startswith("verl_p2r.plugin.cpu.")
    assert not {"driver", "GPUs", "flash-attention"} & findings.keys()
    assert "fail" not in result.output


@pytest.mark.slow
def test_doctor_lists_every_missing_name_when_plugins_are_disabled(run_doctor, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    result, findings = run_doctor()
    assert result.exit_code == 1
    assert {*REGISTERED, "platform"} <= set(fatal(findings))
    assert "unset it, or add verl_p2r" in findings["VERL_USE_EXTERNAL_PLUGINS"].remedy
    assert "VERL_USE_EXTERNAL_MODULES=verl_p2r.plugin" in findings["estimator pa_grpo"].remedy
    assert "…" not in result.output, "a remedy is cut off in the table"


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["", None])
def test_doctor_without_gpu_tells_to_set_verl_platform(run_doctor, monkeypatch, chosen):
    monkeypatch.setattr(gpu_facts, "NVIDIA_SMI", ("nvidia-smi-of-no-driver",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("VERL_PLATFORM")
    if chosen is not None:
        monkeypatch.setenv("VERL_PLATFORM", chosen)
    result, findings = run_doctor()
    first = findings[fatal(findings)[0]]
    assert (first.what, first.found) == ("driver", "nvidia-smi is not installed")
    assert "set VERL_PLATFORM=cpu" in first.remedy
    assert "finds no GPU" in findings["platform"].found
    assert result.exit_code == 1


def test_warnings_alone_do_not_fail(run_doctor, monkeypatch):
    monkeypatch.setattr(doctor, "INSTALLATION", (lambda: [Finding("a thing", "odd", "look at it", fatal=False)],))
    result, _ = run_doctor()
    assert "warn" in result.output
    assert result.exit_code == 0


def test_a_config_that_cannot_be_read_ends_with_its_error(installed):
    result = CliRunner().invoke(app, ["doctor", "p2r_ppo_cpu", "data.train_batchsize=4"])
    assert result.exit_code == 2
    assert "train_batchsize" in result.output


def test_a_remedy_in_a_file_is_one_line(monkeypatch):
    remedy = "rm " + " ".join(f"/dev/shm/sem.mp-{i:08d}" for i in range(12))
    finding = Finding("shared memory", "12 segments", remedy, fatal=False)
    monkeypatch.setattr(doctor, "examine", lambda launch: [finding])
    assert remedy in CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "60"}).output
