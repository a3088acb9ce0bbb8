# SPDX-License-Identifier: Apache-2.0
"""Files of records: what cannot be read is listed with its place and reason, and costs no other record."""

import gzip
import json

import pytest
from release_files import gz_list, lines_of, release_record, stringified, write_lines

from data_tools.records.files import Records, files_of
from data_tools.records.left_out import RejectLog
from data_tools.steps.verify import verify
from verl_p2r.data.record import Record


@pytest.fixture
def load(tmp_path):
    """`load(path, …)`: records of files, and the rejects as they are listed."""

    def make(*paths):
        with RejectLog(tmp_path / "rejects.jsonl") as log:
            records = list(Records(paths, log))
        return records, lines_of(log.path) if log.total else []

    return make


def test_rejects_are_listed_with_file_line_field_and_reason(tmp_path, load):
    path = write_lines(
        tmp_path / "a.jsonl", [release_record(1), release_record(2, path="../x.mp4"), release_record(3, options="x")]
    )
    with path.open("ab") as file:
        file.write(b'{"problem\n\n')
        file.write(json.dumps(release_record(4, problem="caf@")).encode().replace(b"@", b"\xe9") + b"\n")
    records, rejects = load(path)
    assert [record.problem_id for record in records] == ["1"]
    assert (records[0].file, records[0].line) == (str(path), 1)
    assert [(r["file"], r["line"], r["record"], r["field"], r["reason"]) for r in rejects] == [
        (str(path), 2, "2", "path", "unsafe path"),
        (str(path), 3, "3", "options", "unreadable options"),
        (str(path), 4, None, "", "unreadable record"),
        (str(path), 6, "4", "problem", "invalid UTF-8"),
    ]
    assert rejects[0]["message"].startswith("field path is '../x.mp4': give a path relative to")
    assert {reject["identity"] for reject in rejects} == {None}  # none of them is a record


def test_dropped_and_rejected_records_are_listed_with_identity(tmp_path):
    raws = [release_record(1, output="no template"), release_record(2, output=None, process=None)]
    verify([write_lines(tmp_path / "a.jsonl", raws)], tmp_path / "out", max_reject_share=1)
    identities = [Record.parse(raw).identity.hex() for raw in raws]
    (dropped,), (rejected,) = (lines_of(tmp_path / "out" / f"{name}.jsonl") for name in ("dropped", "rejects"))
    assert [dropped["dropped"]["identity"], rejected["identity"]] == identities


def test_duplicate_problem_id_across_files_is_rejected(tmp_path, load):
    first = gz_list(tmp_path / "a.json.gz", [release_record(1), release_record(2)])
    second = gz_list(tmp_path / "b.json.gz", [release_record(3), stringified(release_record(2))])
    records, rejects = load(first, second)
    assert [record.problem_id for record in records] == ["1", "2", "3"]
    assert [(r["file"], r["field"], r["reason"]) for r in rejects] == [(str(second), "problem_id", "duplicate id")]
    assert "like that of record 2 of the input" in rejects[0]["message"]


def test_records_without_an_id_are_numbered(tmp_path, load):
    raws = [release_record(i) for i in range(3)]
    for raw in raws:
        del raw["problem_id"]
    records, rejects = load(write_lines(tmp_path / "a.jsonl", raws))
    assert ([record.problem_id for record in records], rejects) == (["0", "1", "2"], [])


def test_truncated_archive_is_one_reject_after_readable_records(tmp_path, load):
    path = gz_list(tmp_path / "a.json.gz", [release_record(i) for i in range(500)])
    path.write_bytes(path.read_bytes()[:-20])
    records, rejects = load(path)
    assert records == [Record.parse(release_record(i)) for i in range(len(records))]
    assert len(records) > 100
    assert [r["reason"] for r in rejects] == ["damaged file"]


def test_long_value_is_shortened_in_reject_message(tmp_path, load):
    _, [reject] = load(write_lines(tmp_path / "a.jsonl", [release_record(options="x" * 100_000)]))
    assert len(reject["message"]) < 700
    assert reject["message"].endswith("give a list of texts")


def test_json_values_that_are_not_records_are_rejected(tmp_path, load):
    (tmp_path / "a.json").write_bytes(gzip.compress(b'[1, "a", null, true, {}]'))
    records, rejects = load(tmp_path / "a.json")
    assert records == []
    assert [r["reason"] for r in rejects] == ["unreadable record"] * 4 + ["no problem"]


def test_inputs_may_be_files_or_step_output_folders(tmp_path):
    for name in ("part-00001.jsonl", "part-00000.jsonl", "rejects.jsonl", "manifest.json"):
        (tmp_path / name).touch()
    assert [path.name for path in files_of([tmp_path])] == ["part-00000.jsonl", "part-00001.jsonl"]
    assert files_of([tmp_path / "rejects.jsonl"]) == [tmp_path / "rejects.jsonl"]
    with pytest.raises(ValueError, match="nowhere does not exist: name files of records"):
        files_of([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no part-\*"):
        files_of([tmp_path / "empty"])
