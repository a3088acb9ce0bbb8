# SPDX-License-Identifier: Apache-2.0
"""Step 2: the template and the answer decide, and what goes is listed with why."""

import json
from collections import Counter

import pytest
from release_files import lines_of, release_record, stringified, write_lines
from typer.testing import CliRunner

from data_tools.cli import app
from data_tools.steps.verify import VerifySettings, verified, verify
from verl_p2r.accuracy import answer_accuracy
from verl_p2r.data.record import Record


def response(answer="A", observation="a red ball", think="it is red"):
    return f"<observation>{observation}</observation>\n<think>{think}</think>\n<answer>{answer}</answer>"


def record(output, **changes) -> Record:
    raw = release_record(**{"answer": None, "observation": None, "process": None, "reward": None, **changes})
    return Record.parse({**raw, "output": output})


CASES = [
    # problem type, solution, answer, min_accuracy, kept: by hand
    ("multiple choice", "A", "A", 0.6, True),
    ("multiple choice", "A", "(a) the red one", 0.6, True),
    ("multiple choice", "A", "B", 0.6, False),
    ("numerical", "3.14", "3.14", 0.6, True),
    ("numerical", "3.14", "3.2", 0.6, False),
    ("OCR", "no parking here today", "no parking hear", 0.6, False),  # two of four words: 0.5
    ("OCR", "no parking here today", "no parking hear", 0.5, True),
    ("OCR", "no parking here today ok", "no parking here today", 0.8, True),  # four of five
    ("regression", "10", "14", 0.6, False),  # 1 - (4 + 1e-9) / (10 + 1e-9) is a little less than 0.6
    ("regression", "10", "13.9", 0.6, True),
    ("free-form", "she opens the window", "she opens the window", 0.6, True),
    ("free-form", "she opens the window", "a dog sleeps", 0.6, False),
]


@pytest.mark.parametrize(("kind", "solution", "answer", "least", "kept"), CASES)
def test_verify_keeps_records_with_accurate_answers(kind, solution, answer, least, kept):
    options = ["A. the red one", "B. the blue one"] if kind == "multiple choice" else []
    given = record(response(answer), problem_type=kind, solution=f"<answer>{solution}</answer>", options=options)
    made, why = verified(given, VerifySettings(least))
    assert (why is None) is kept
    accuracy = answer_accuracy(kind, answer, solution, options=options)
    assert made.reward == pytest.approx(accuracy, abs=1e-6)
    assert (made.observation, made.process) == ("a red ball", "it is red")
    if not kept:
        assert why.reason == f"accuracy below {least:g}"
        assert f"{accuracy:.3f}" in why.problem


def test_strict_verify_rejects_answer_in_other_form():
    given = record(response("(a)"))
    assert verified(given, VerifySettings())[1] is None
    assert verified(given, VerifySettings(strict=True))[1] is not None


@pytest.mark.parametrize(
    ("output", "missing"),
    [
        ("<answer>A</answer>", "its observation and its think and answer"),
        ("<observation>x</observation><answer>A</answer>", "its think and answer"),
        ("<think>x</think><answer>A</answer>", "its observation"),
        (response() + " and more", "its think and answer"),
        ("So: " + response(), "its observation"),
        (response(observation=" "), "its observation"),
        ("", "its observation and its think and answer"),
        ("\x00<observation>" * 1000, "its observation and its think and answer"),
    ],
)
def test_verify_drops_responses_not_in_template(output, missing):
    made, why = verified(record(output or " "), VerifySettings(0.0))
    assert why.reason == "not in the template"
    assert why.problem == f"not in the template: {missing}"
    assert made.output == output.strip()


def test_verify_reads_release_records(tmp_path):
    """Responses that came in parts, and everything as text."""
    raws = [
        release_record(1),
        stringified(release_record(2)),
        stringified(release_record(3, output="", solution="<answer>B</answer>", answer="B")),
        release_record(4, output=None, observation=None, process=None),
    ]
    report = verify([write_lines(tmp_path / "a.jsonl", raws)], tmp_path / "out", max_reject_share=0.3)
    assert (report.read, report.written, report.dropped) == (4, 3, {})
    assert report.rejected == {"no response": 1}
    assert not report.failed


def test_verify_writes_parts_rejects_dropped_and_manifest(tmp_path):
    raws = [{**release_record(i), "output": response("AB"[i % 2]), "mine": {"x": i}} for i in range(7)]
    raws[2]["output"] = "no template"
    raws[3]["path"] = "../x.mp4"
    settled = []
    report = verify(
        [write_lines(tmp_path / "a.jsonl", raws)], tmp_path / "out", max_reject_share=0.2, on_record=settled.append
    )
    assert (report.read, report.written) == (7, 3)
    assert report.dropped == {"accuracy below 0.6": 2, "not in the template": 1}
    assert report.rejected == {"unsafe path": 1}
    assert settled == [True, False, False, True, False, True]
    kept = lines_of(tmp_path / "out" / "part-00000.jsonl")
    assert [line["problem_id"] for line in kept] == ["0", "4", "6"]
    assert kept[1]["mine"] == {"x": 4}
    assert kept[1]["reward"] == 1.0
    dropped = lines_of(tmp_path / "out" / "dropped.jsonl")
    assert [line["problem_id"] for line in dropped] == ["1", "2", "5"]
    assert dropped[0]["dropped"]["step"] == "verify"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"] == {"min_accuracy": 0.6, "strict": False, "max_reject_share": 0.2}
    assert (manifest["read"], manifest["written"], sum(manifest["dropped"].values())) == (7, 3, 3)


def test_verify_keeps_record_order(tmp_path):
    cases = [(kind, solution, answer) for kind, solution, answer, _, _ in CASES if kind != "multiple choice"]
    raws = []
    for i in range(800):
        kind, solution, answer = cases[i % len(cases)]
        raws.append(release_record(i, problem_type=kind, solution=solution, answer=None, options=[]))
        raws[-1] |= {"output": response(answer) if i % 7 else "no template"}
    raws[512]["problem_id"] = 1
    file = write_lines(tmp_path / "a.jsonl", raws)
    report = verify([file], tmp_path / "out")
    assert report.rejected == {"duplicate id": 1}
    assert "like that of record 2 of the input" in report.first[0].message
    del raws[512]
    one_by_one = [verified(Record.parse(raw), VerifySettings()) for raw in raws]
    kept = [made.to_json() for made, why in one_by_one if why is None]
    assert lines_of(tmp_path / "out" / "part-00000.jsonl") == kept
    assert report.dropped == Counter(why.reason for _, why in one_by_one if why is not None)
    assert sum(report.dropped.values()) + len(kept) == len(raws)


def test_verify_fails_when_no_record_is_kept(tmp_path):
    raws = [{**release_record(1), "output": "no template"}]
    assert verify([write_lines(tmp_path / "a.jsonl", raws)], tmp_path / "out").failed


@pytest.mark.parametrize("least", [-0.1, 1.1, float("nan")])
def test_min_accuracy_out_of_range_is_refused(least):
    with pytest.raises(ValueError, match="min_accuracy is"):
        VerifySettings(least)


def test_verify_command_applies_options_and_config(tmp_path):
    raws = [{**release_record(i), "output": response("AB"[i % 2])} for i in range(4)]
    file = write_lines(tmp_path / "a.jsonl", raws)
    done = CliRunner().invoke(app, ["verify", str(file), "--out", str(tmp_path / "out"), "--min-accuracy", "0.9"])
    assert done.exit_code == 0, done.output
    assert "verify: 4 records read, 2 kept" in done.output
    assert "dropped, accuracy below 0.9: 2 (dropped.jsonl)" in done.output
    config = tmp_path / "b.yaml"
    config.write_text("verify: {min_accuracy: 0.0}\n")
    done = CliRunner().invoke(app, ["verify", str(file), "--out", str(tmp_path / "out"), "--config", str(config)])
    assert "4 kept" in done.output
    config.write_text("verify: {min_acuracy: 0.0}\n")
    done = CliRunner().invoke(app, ["verify", str(file), "--out", str(tmp_path / "out"), "--config", str(config)])
    assert done.exit_code == 2
    assert "did you mean min_accuracy?" in done.output
