# SPDX-License-Identifier: Apache-2.0
"""500 hostile replies: each record ends kept, dropped, or as one named reject, at the first run and at any restart."""

from pathlib import Path

import pytest
from hostile_replies import hostile_server
from pipeline_records import make_records
from release_files import lines_of, write_lines

from data_tools.steps.generate import generate
from data_tools.steps.generate_settings import GenerateSettings
from data_tools.steps.judge import JudgeStepSettings, judge
from data_tools.steps.run import StepReport
from verl_p2r.chat import client as chat_client
from verl_p2r.chat import endpoints
from verl_p2r.data.record import Record

REASONS = {"no reply", "useless reply", "refused"}
QUICK = {"timeout_s": 5.0, "deadline_s": 10.0}


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):

    monkeypatch.setattr(chat_client, "_BACKOFF_S", 0.001)
    monkeypatch.setattr(endpoints, "_REST_S", 0.05)


def run(step: str, file: Path, out: Path, url: str) -> StepReport:
    if step == "generate":
        settings = GenerateSettings(model="m", base_urls=(url,), concurrency=16, **QUICK)
        return generate([file], out, settings, file.parent, max_reject_share=1.0)
    kwargs = {"model": "m", "base_urls": [url], **QUICK}
    return judge([file], out, JudgeStepSettings(kwargs=kwargs, concurrency=16), max_reject_share=1.0)


def account(out: Path, report: StepReport) -> dict[str, str]:
    """What has become of each record; the report must say the same."""
    fates: dict[str, str] = {}
    for name in ("part-00000.jsonl", "dropped.jsonl", "rejects.jsonl"):
        for line in lines_of(out / name) if (out / name).exists() else []:
            record = line["record"] if name == "rejects.jsonl" else Record.parse(line).problem_id
            assert record not in fates, "two fates"
            fates[record] = line["reason"] if name == "rejects.jsonl" else name
    counts = {fate: list(fates.values()).count(fate) for fate in fates.values()}
    assert counts.get("part-00000.jsonl", 0) == report.written
    assert counts.get("dropped.jsonl", 0) == sum(report.dropped.values())
    assert {fate: n for fate, n in counts.items() if not fate.endswith("jsonl")} == report.rejected
    return fates


@pytest.mark.slow
@pytest.mark.parametrize("step", ["generate", "judge"])
@pytest.mark.parametrize("seed", [0, 1])
def test_hostile_replies_reject_only_their_own_records(tmp_path, step, seed):
    raws = make_records(tmp_path, 500, videos=0)
    for raw in raws:
        raw |= {"observation": f"It shows ball {raw['problem_id']}."} if step == "judge" else {}
    file, out = write_lines(tmp_path / "in.jsonl", raws), tmp_path / "out"
    with hostile_server(seed, step) as url:
        fates = account(out, first := run(step, file, out, url))
        before = (out / "part-00000.jsonl").read_bytes()
        again = account(out, run(step, file, out, url))  # only what has no reply is asked, and all of that is hostile
    assert first.read == 500
    assert fates.keys() == {str(i) for i in range(500)}
    assert set(fates.values()) <= {"part-00000.jsonl", "dropped.jsonl"} | REASONS
    assert 150 < first.written < 450
    assert sum(first.rejected.values()) > 50
    assert again == fates
    assert (out / "part-00000.jsonl").read_bytes() == before
