# SPDX-License-Identifier: Apache-2.0
"""Entry points that lead nowhere: vLLM would only log them, so the start of a run and `doctor` name them."""

from importlib import metadata

import pytest

from verl_p2r.plugin import entry_points
from verl_p2r.plugin.doctor.installation import check_entry_points as findings_of_entry_points
from verl_p2r.plugin.rl.trainer import check_config

STALE = metadata.EntryPoint("verl_p2r", "verl_p2r.plugin.moved:register", "vllm.general_plugins")
GOOD = metadata.EntryPoint("verl_p2r", "verl_p2r.plugin", "verl.plugins")
FOREIGN = metadata.EntryPoint("other", "no_such_package:register", "vllm.general_plugins")


@pytest.fixture
def installed(monkeypatch):
    """Pretend that exactly these entry points are installed."""

    def install(*entries: metadata.EntryPoint):
        monkeypatch.setattr(metadata, "entry_points", lambda group: [e for e in entries if e.group == group])

    return install


def test_installed_entry_points_load():
    assert all(entry_points.ours(group) for group in entry_points.GROUPS)
    entry_points.check_entry_points()


def test_stale_entry_point_stops_a_run_at_start(installed):
    installed(GOOD, STALE)
    with pytest.raises(ValueError, match=r"plugin\.moved:register of vllm\.general_plugins .*reinstall verl_p2r"):
        check_config({})


def test_entry_points_of_other_packages_are_not_loaded(installed):
    installed(GOOD, FOREIGN)
    entry_points.check_entry_points()


def test_doctor_names_a_stale_entry_point_with_its_remedy(installed):
    installed(GOOD, STALE)
    findings = {finding.what: finding for finding in findings_of_entry_points()}
    stale = findings["entry point vllm.general_plugins"]
    assert (stale.found, stale.fatal) == (STALE.value, True)
    assert "No module named 'verl_p2r.plugin.moved'" in stale.remedy
    assert not findings["entry point verl.plugins"].remedy
