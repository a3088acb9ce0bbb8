# SPDX-License-Identifier: Apache-2.0
"""Decontamination: what occurs in a benchmark goes, and is listed with the place where it occurs."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from release_files import lines_of, release_record, stringified, write_lines
from typer.testing import CliRunner

from data_tools.cli import app
from data_tools.steps.decontaminate import MEDIUM, QUESTION, Benchmark, decontaminate, medium_key, question_key
from verl_p2r.data.record import Record


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is THIS?", "what  is this", True),
        ("<video>\nWhat is this?", "What is this?", True),
        ("What is this?\nOptions:\nA. it\n", "What is this?", True),
        ("Ｗｈａｔ is “this”?", 'What is "this"', True),
        ("Où est-ce?", "OÙ EST CE", True),
        ("What is that?", "What is this?", False),
        ("这是什么?", "那是什么?", False),
    ],
)
def test_question_keys_compare_words_only(one, other, same):
    assert (question_key(one) == question_key(other)) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("LLaVA-Video-178K/a/Xy_9-z.mp4", "Xy_9-z", True),
        ("a/b/clip.mp4", "/other/clip.avi", True),
        ("a/v1.5.clip.mp4", "v1.5.clip", False),  # what follows the last point is taken for an ending
        ("a/images/12.png", "b/images/12.png", True),
        ("a/images/12.png", "b/pictures/12.png", False),
        ("a/clip1.mp4", "a/clip2.mp4", False),
    ],
)
def test_medium_keys_compare_file_names_only(one, other, same):
    assert (medium_key(one) == medium_key(other)) is same


@pytest.fixture
def training(tmp_path):
    records = [
        release_record(0, path="./STAR/held.mp4", problem="Why 0?"),
        release_record(1, path="./STAR/a.mp4", problem="<video>What does the MAN do"),
        release_record(2, path="./STAR/b.mp4", problem="Why 2?"),
        stringified(release_record(3, path="./STAR/c.mp4", problem="Why 3?")),
        release_record(4, path="../d.mp4"),
    ]
    return write_lines(tmp_path / "train.jsonl", records)


ROWS = [{"video": "held.avi", "question": "Who?"}, {"video": "other.mp4", "question": "What does the man do?"}]


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_records_found_in_benchmark_are_dropped_and_listed(tmp_path, training, form):
    benchmark = tmp_path / f"bench.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), benchmark)
    elif form == "json":
        benchmark.write_text(json.dumps(ROWS, indent=1))
    else:
        write_lines(benchmark, ROWS)
    line = {"jsonl": (1, 2), "json": (2, 6), "parquet": (1, 2)}[form]
    done = decontaminate([training], Benchmark([benchmark]), tmp_path / "out", max_reject_share=0.2)
    assert (done.read, done.written, done.failed) == (5, 2, False)
    assert done.dropped == {MEDIUM: 1, QUESTION: 1}
    assert done.rejected == {"unsafe path": 1}
    dropped = lines_of(tmp_path / "out" / "dropped.jsonl")
    why = [record["dropped"] for record in dropped]
    assert [(record["problem_id"], w["step"], w["reason"]) for record, w in zip(dropped, why, strict=True)] == [
        ("0", "decontaminate", MEDIUM),
        ("1", "decontaminate", QUESTION),
    ]
    assert why[0]["message"].endswith(f"STAR/held.mp4 occurs in the benchmark at {benchmark}:{line[0]}")
    assert why[1]["message"].endswith(f"occurs in the benchmark at {benchmark}:{line[1]}")
    raws = [{k: v for k, v in record.items() if k != "dropped"} for record in dropped]  # each is there whole
    assert [Record.parse(raw) for raw in raws] == [Record.parse(raw) for raw in lines_of(training)[:2]]
    left = [Record.parse(raw) for raw in lines_of(tmp_path / "out" / "part-00000.jsonl")]
    assert left == [Record.parse(raw) for raw in lines_of(training)[2:4]]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["dropped"] == {MEDIUM: 1, QUESTION: 1}
    assert manifest["settings"]["benchmark"][0]["sha256"] == hashlib.sha256(benchmark.read_bytes()).hexdigest()
    assert manifest["outputs"] == ["dropped.jsonl", "part-00000.jsonl", "rejects.jsonl"]


@pytest.mark.parametrize(("by", "left"), [({"medium"}, 3), ({"question"}, 3), ({"medium", "question"}, 2)])
def test_decontamination_by_medium_question_or_both(tmp_path, training, by, left):
    benchmark = Benchmark([write_lines(tmp_path / "b.jsonl", ROWS)])
    assert decontaminate([training], benchmark, tmp_path / "out", by=by, max_reject_share=1).written == left


def test_benchmark_with_other_field_names_requires_options(tmp_path):
    path = write_lines(tmp_path / "b.jsonl", [{"clip": "a.mp4", "ask": "Why?"}])
    with pytest.raises(ValueError, match=r"b\.jsonl: no row has one of the fields path, video"):
        Benchmark([path])
    known = Benchmark([path], ["clip"], ["ask"])
    assert (set(known.media), set(known.questions)) == ({"a"}, {"why"})


def test_a_field_that_no_row_has_is_refused_although_the_other_is_found(tmp_path, training):
    path = write_lines(tmp_path / "b.jsonl", ROWS)
    command = ["decontaminate", str(training), "--benchmark", str(path), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--question-field", "qestion"])
    assert done.exit_code == 2
    assert "no row of the benchmark has a question in field qestion: correct --question-field" in done.output


def test_damaged_benchmark_file_is_an_error(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"video": "a.mp4"}\n{"vid')
    with pytest.raises(ValueError, match=r"b\.jsonl:2: .*must be read completely"):
        Benchmark([tmp_path / "b.jsonl"])
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: cannot be read as a benchmark"):
        Benchmark([tmp_path / "b.parquet"])


def test_questions_without_words_match_nothing(tmp_path):
    benchmark = Benchmark([write_lines(tmp_path / "b.jsonl", [{"question": "???"}])])
    assert benchmark.contains(Record.parse(release_record(problem="!"))) is None


def test_decontaminate_and_to_parquet_commands_chain_history(tmp_path, training):
    bench = write_lines(tmp_path / "bench.jsonl", ROWS)
    arguments = ["decontaminate", str(training), "--benchmark", str(bench), "--out", str(tmp_path / "clean")]
    done = CliRunner().invoke(app, [*arguments, "--max-reject-share", "0.2"])
    assert done.exit_code == 0, done.output
    assert "5 records read, 2 kept" in done.output
    assert "dropped, question in a benchmark: 1" in done.output
    arguments = ["to-parquet", str(tmp_path / "clean"), "--kind", "rl", "--out", str(tmp_path / "rl")]
    done = CliRunner().invoke(app, [*arguments, "--val-share", "0"])
    assert done.exit_code == 0, done.output
    assert pq.read_metadata(tmp_path / "rl" / "train.parquet").num_rows == 2
    manifest = json.loads((tmp_path / "rl" / "manifest.json").read_text())
    history = [(step["step"], step["read"], step["written"]) for step in manifest["history"]]
    assert history == [("decontaminate", 5, 2)]
    assert CliRunner().invoke(app, ["decontaminate", str(training), "--benchmark", "no", "--out", "x"]).exit_code == 2


def test_step_refuses_to_replace_its_input(tmp_path, training):
    benchmark = Benchmark([write_lines(tmp_path / "b.jsonl", ROWS)])
    decontaminate([training], benchmark, tmp_path / "out", max_reject_share=1)
    part = tmp_path / "out" / "part-00000.jsonl"
    with pytest.raises(ValueError, match=r"part-00000\.jsonl is read from it: name another folder"):
        decontaminate([part], benchmark, tmp_path / "out")
    assert len(lines_of(part)) == 2


def test_many_records_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("data_tools.records.files.SHARD", 10)
    raws = [release_record(i, path=f"{i}x.mp4", problem=f"Why {i}?") for i in range(25)]
    benchmark = Benchmark([write_lines(tmp_path / "b.jsonl", ROWS)])
    decontaminate([write_lines(tmp_path / "a.jsonl", raws)], benchmark, tmp_path / "out")
    parts = sorted((tmp_path / "out").glob("part-*.jsonl"))
    assert [len(lines_of(part)) for part in parts] == [10, 10, 5]
    written = [raw for part in parts for raw in lines_of(part)]
    assert [Record.parse(raw) for raw in written] == [Record.parse(raw) for raw in raws]


ASKED = "What does the man hold at the end?"


@pytest.mark.parametrize(
    "written",
    [
        ASKED + "\nA. a cup\nB. a book\nAnswer with the letter.",
        ASKED + "\n(A) a cup\n(B) a book",
        ASKED + " A) a cup B) a book C) a pen",
        ASKED + "\nOptions:\n1. a cup\n2. a book",
        ASKED + "\nAnswer with the option's letter from the given choices directly.",
        "<video>\nPlease answer the question.\n" + ASKED,
        "What does the man hold at the end",
    ],
)
def test_question_key_ignores_trailing_options_and_instructions(written):
    assert question_key(written) == question_key(ASKED)


@pytest.mark.parametrize("question", ["Select the best title.", "What is in vitamin A. or B?", "Choose one: A. red"])
def test_question_key_keeps_questions_that_look_like_instructions(question):
    assert question_key(question)


@pytest.mark.parametrize(
    ("medium", "keys"),
    [
        ({"path": "x/clip_1ab.mp4", "bytes": None}, ["clip_1ab"]),
        ([{"path": "clip_1ab.mp4", "bytes": None}, "clip_2ab.mp4"], ["clip_1ab", "clip_2ab"]),
        ({"url": "https://host/clip_1ab.mp4"}, ["clip_1ab"]),
        ({"type": "video_url", "video_url": {"url": "clip_1ab.mp4"}}, ["clip_1ab"]),
        (4711, ["4711"]),
        (None, []),
        ("", []),
    ],
)
def test_benchmark_media_fields_are_read_in_every_shape(tmp_path, medium, keys):
    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "Why?", "video": medium}))
    assert list(Benchmark([tmp_path / "b.jsonl"]).media) == keys


@pytest.mark.parametrize(
    ("row", "field", "option"),
    [
        ({"video": {"bytes": "AAAA", "path": None}}, "video", "--medium-field"),
        ({"video": [{"bytes": "AAAA"}]}, "video", "--medium-field"),
        ({"video": True}, "video", "--medium-field"),
        ({"question": {"a": "Why?"}}, "question", "--question-field"),
        ({"question": [["Why?", {}]]}, "question", "--question-field"),
    ],
)
def test_unreadable_benchmark_field_is_an_error(tmp_path, row, field, option):
    rows = [{"question": "How?", "video": "a.mp4"}, {"question": "Why?", "video": "b.mp4", **row}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"b\.jsonl:2: field {field} is .*{option}"):
        Benchmark([tmp_path / "b.jsonl"])
    other = "question" if field == "video" else "medium"
    assert Benchmark([tmp_path / "b.jsonl"], by=[other]).files


def test_a_parquet_of_hugging_face_media_is_read(tmp_path):
    rows = [{"question": "other", "video": {"path": "clip_1ab.mp4", "bytes": None}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    assert list(Benchmark([tmp_path / "b.parquet"]).media) == ["clip_1ab"]
