# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' history: a run is recorded when asked for, and every benchmark can record."""

import argparse
import importlib.util
import json
import re
import sys
from types import SimpleNamespace

import pytest
from paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
# Loaded by its path: with the folder on `sys.path`, benchmarks/data_tools.py would hide the package data_tools.
_spec = importlib.util.spec_from_file_location("recording", BENCHMARKS / "recording.py")
recording = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recording)


@pytest.mark.parametrize("asked", [False, True])
def test_benchmark_run_is_recorded_only_with_record_option(asked, tmp_path, capsys):
    history = tmp_path / "history.jsonl"
    history.write_text('{"benchmark": "before"}\n')
    arguments = argparse.Namespace(quick=True, record=asked)
    recording.finish("media", {"ratio": 2.5, "share": None}, arguments, history)
    assert json.loads(capsys.readouterr().out) == {"ratio": 2.5, "share": None}
    before, *runs = map(json.loads, history.read_text().splitlines())
    assert before == {"benchmark": "before"}
    assert len(runs) == asked
    for run in runs:
        assert (run["benchmark"], run["quick"], run["figures"]) == ("media", True, {"ratio": 2.5, "share": None})
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", run["date"])
        assert re.fullmatch(r"([0-9a-f]{7,}\+?)?", run["commit"])
        assert "cores" in run["machine"]


@pytest.mark.parametrize("available", [False, True])
def test_machine_names_the_gpu_that_torch_sees(available, monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: available, get_device_name=lambda: "NVIDIA H200")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert recording.machine().endswith(", NVIDIA H200") is available
    monkeypatch.delitem(sys.modules, "torch")
    assert "NVIDIA" not in recording.machine()


def test_every_benchmark_ends_by_recording_under_its_own_name():
    for script in BENCHMARKS.glob("*.py"):
        text = script.read_text(encoding="utf-8")
        if script.name != "recording.py":
            assert "recording.add_option(parser)" in text, script
            assert set(re.findall(r"recording\.finish\(\"(\w+)\"", text)) == {script.stem}, script


def test_benchmark_history_lines_have_the_plotted_fields():
    fields = {"benchmark", "quick", "date", "commit", "machine", "load", "figures"}
    for line in recording.HISTORY.read_text(encoding="utf-8").splitlines():
        assert set(json.loads(line)) == fields
