# SPDX-License-Identifier: Apache-2.0
"""Records are validated at the door: all published spellings read alike, and each bad one is told field and reason."""

import gzip
import json

import pytest
from release_files import OBSERVATION, THINKING, gz_list, lines_of, release_record, stringified, write_lines

from data_tools.records.files import Records, files_of
from data_tools.records.left_out import RejectLog
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Medium, Record


@pytest.fixture
def load(tmp_path):
    """`load(path, …)`: records of files, and the rejects as they are listed."""

    def make(*paths):
        with RejectLog(tmp_path / "rejects.jsonl") as log:
            records = list(Records(paths, log))
        return records, lines_of(log.path) if log.total else []

    return make


EXPECTED = Record(
    problem_id="1",
    problem="Which ball moves first?",
    problem_type="multiple choice",
    data_type="video",
    path="STAR/Charades_v1_480/1ab.mp4",
    solution="<answer>A</answer>",
    options=("A. the red one", 'B. it\'s the "blue" one'),
    data_source="STAR",
    answer="A",
    observation=OBSERVATION,
    process=f"<think>{THINKING}</think>",
    output=release_record()["output"],
    reward=1.0,
    select=True,
    extra={"clean_version": 2},
)


@pytest.mark.parametrize("lists", [str, json.dumps, None])
def test_the_published_spellings_read_alike(lists):
    raw = release_record() if lists is None else stringified(release_record(), lists)
    record = Record.parse(raw)
    # What a field that is not ours holds stays as it was, text or not.
    assert record.extra == {"clean_version": 2 if lists is None else "2"}
    assert Record.parse({**raw, "clean_version": 2}) == EXPECTED


def test_a_record_of_video_r1():
    # As in Video-R1-260k.json: no observation, `process` empty, an integer id.
    raw = {
        "problem_id": 2,
        "problem": "Appears the ball?",
        "data_type": "video",
        "problem_type": "numerical",
        "options": [],
        "process": "",
        "solution": "<answer>3</answer>",
        "path": "./CLEVRER/train/video_1.mp4",
        "data_source": "CLEVRER",
    }
    record = Record.parse(raw)
    assert (record.problem_id, record.process, record.response, record.extra) == ("2", None, None, {})
    assert record.path == "CLEVRER/train/video_1.mp4"


def test_what_is_written_reads_back():
    raw = release_record(note={"nested": ["é", None]}, zebra=None)
    record = Record.parse(raw)
    written = json.loads(json.dumps(record.to_json(), ensure_ascii=False))
    assert written["note"] == {"nested": ["é", None]}
    assert "zebra" in written
    assert Record.parse(written) == record


def test_media_and_facts_are_read_in_any_spelling_and_written_back():
    own = {"media": {"video_start": 60, "nframes": 8}, "facts": ["red", {"state": "left", "not": ["right"]}]}
    facts = ({"state": "red", "not": []}, {"state": "left", "not": ["right"]})
    for record in (Record.parse(make(release_record(**own))) for make in (dict, stringified)):
        assert (record.media, record.facts) == (own["media"], facts)
        assert record.extra.keys() == {"clean_version"}
        assert record.medium == Medium("video", "STAR/Charades_v1_480/1ab.mp4", (("nframes", 8), ("video_start", 60.0)))
        written = json.loads(json.dumps(record.to_json()))
        assert (written["media"], written["facts"]) == (own["media"], list(facts))
        assert Record.parse(written) == record
    assert not {"media", "facts"} & Record.parse(release_record()).to_json().keys()


@pytest.mark.parametrize("missing", [None, "", "None", "null", "nan"])
def test_missing_values_in_any_spelling(missing):
    record = Record.parse(release_record(reward=missing, select=missing, answer=missing, observation=missing))
    assert (record.reward, record.select, record.answer, record.observation) == (None, None, None, None)


def test_many_options_and_a_long_question():
    options = [f"{i}. thing" for i in range(100)]
    record = Record.parse(stringified(release_record(problem="é" * 1_000_000, options=options)))
    assert record.options == tuple(options)
    assert len(record.problem) == 1_000_000


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"options": "A. red B. blue"}, "options", "unreadable options"),
        ({"options": "{'A': 'red'}"}, "options", "unreadable options"),
        ({"options": "__import__('os').abort()"}, "options", "unreadable options"),
        ({"options": 3}, "options", "unreadable options"),
        ({"answer": "B"}, "answer", "conflicting answers"),
        ({"answer": "<answer>B</answer>"}, "answer", "conflicting answers"),
        ({"answer": "4", "solution": "3", "problem_type": "numerical"}, "answer", "conflicting answers"),
        ({"path": "/etc/passwd"}, "path", "unsafe path"),
        ({"path": "../a.mp4"}, "path", "unsafe path"),
        ({"path": "./STAR/../../a.mp4"}, "path", "unsafe path"),
        ({"path": "STAR/.."}, "path", "unsafe path"),
        ({"path": "..\\a.mp4"}, "path", "unsafe path"),
        ({"path": "C:/a.mp4"}, "path", "unsafe path"),
        ({"path": "~/a.mp4"}, "path", "unsafe path"),
        ({"path": " /a.mp4"}, "path", "unsafe path"),
        ({"path": "file:///a.mp4"}, "path", "unsafe path"),
        ({"path": "https://example.org/a.mp4"}, "path", "unsafe path"),
        ({"path": "a\0.mp4"}, "path", "unsafe path"),
        ({"path": "./"}, "path", "unsafe path"),
        ({"path": ""}, "path", "no path"),
        ({"problem": "\udce9t"}, "problem", "invalid UTF-8"),
        ({"note": ["\ud83d"]}, "note", "invalid UTF-8"),
        ({"reward": "high"}, "reward", "no number"),
        ({"reward": [1]}, "reward", "no number"),
        ({"select": "perhaps"}, "select", "no truth value"),
        ({"output": ["a"]}, "output", "no text"),
        ({"problem_type": "essay"}, "problem_type", "unknown problem type"),
        ({"data_type": "audio"}, "data_type", "unknown data type"),
        ({"solution": ""}, "solution", "no ground truth"),
        ({"media": "half of it"}, "media", "bad media"),
        ({"media": {"rate": 2}}, "media", "bad media"),
        ({"media": "{'fps': 'fast'}"}, "media", "bad media"),
        ({"media": {"fps": float("inf")}}, "media", "bad media"),
        ({"media": {"\udce9": 2}}, "media", "invalid UTF-8"),
        ({"data_source": ["STAR"]}, "data_source", "bad data_source"),
        ({"problem_id": {"a": 1}}, "problem_id", "bad problem_id"),
        ({"problem_type": ["numerical"]}, "problem_type", "unknown problem type"),
        ({"data_type": {"video": 1}}, "data_type", "unknown data type"),
        ({"solution": float("nan")}, "solution", "no ground truth"),
        ({"solution": "Z"}, "solution", "unusable ground truth"),
        ({"reward": 10**400}, "reward", "no number"),
        ({"select": {"x": 1}}, "select", "no truth value"),
        ({"facts": "red"}, "facts", "bad facts"),
        ({"facts": [{"not": ["red"]}]}, "facts", "bad facts"),
    ],
)
@pytest.mark.parametrize("release", [False, True])
def test_a_bad_field_is_named_with_its_reason(changes, field, reason, release):
    raw = release_record(**changes)
    if release:
        raw = {k: v if k in changes else str(v) for k, v in raw.items()}
    with pytest.raises(RowError, match="field") as caught:
        Record.parse(raw)
    assert (caught.value.field, caught.value.reason) == (field, reason)
    caught.value.problem.encode()  # fit to print


@pytest.mark.parametrize(
    "changes",
    [
        {"answer": "(a)"},
        {"answer": " A. the red one"},
        {"answer": "the red one"},
        {"answer": "3.0", "solution": "<answer>3</answer>", "problem_type": "numerical"},
        # Free-form answers agree from an accuracy of 0.6 on: the same words but for one of six.
        {
            "answer": "she opens the big window slowly",
            "solution": "She opens the big window now",
            "problem_type": "free-form",
        },
    ],
)
def test_answers_that_say_the_same_are_no_conflict(changes):
    Record.parse(release_record(**changes))


@pytest.mark.parametrize("path", ["./a/b.mp4", "a//b.mp4", "a/./b.mp4", " a/b.mp4"])
def test_one_file_has_one_path(path):
    assert Record.parse(release_record(path=path)).path == "a/b.mp4"


WHOLE = f"<observation>{OBSERVATION}</observation>\n<think>{THINKING}</think>\n<answer>A</answer>"


@pytest.mark.parametrize(
    ("changes", "response"),
    [
        ({}, WHOLE),
        ({"output": f" \n{WHOLE}\n"}, WHOLE),
        ({"output": None, "process": WHOLE}, WHOLE),
        ({"output": None}, WHOLE),
        ({"output": "A", "observation": f"<observation> {OBSERVATION}</observation>", "process": THINKING}, WHOLE),
        ({"output": None, "solution": "A"}, WHOLE),
        ({"output": None, "observation": None}, None),
        ({"output": None, "process": None}, None),
        ({"output": None, "observation": "a <think> b"}, None),
        ({"output": WHOLE.replace("</think>", ""), "observation": None}, None),
    ],
)
def test_the_response_of_a_record(changes, response):
    assert Record.parse(release_record(**changes)).response == response


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


def test_ids_are_unique_over_all_files(tmp_path, load):
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


def test_a_truncated_archive_is_a_reject(tmp_path, load):
    path = gz_list(tmp_path / "a.json.gz", [release_record(i) for i in range(500)])
    path.write_bytes(path.read_bytes()[:-20])
    records, rejects = load(path)
    assert records == [Record.parse(release_record(i)) for i in range(len(records))]
    assert len(records) > 100
    assert [r["reason"] for r in rejects] == ["damaged file"]


def test_a_long_value_does_not_fill_the_listing(tmp_path, load):
    _, [reject] = load(write_lines(tmp_path / "a.jsonl", [release_record(options="x" * 100_000)]))
    assert len(reject["message"]) < 700
    assert reject["message"].endswith("give a list of texts")


def test_values_that_are_no_records(tmp_path, load):
    (tmp_path / "a.json").write_bytes(gzip.compress(b'[1, "a", null, true, {}]'))
    records, rejects = load(tmp_path / "a.json")
    assert records == []
    assert [r["reason"] for r in rejects] == ["unreadable record"] * 4 + ["no problem"]


def test_inputs_are_files_or_the_folders_of_steps(tmp_path):
    for name in ("part-00001.jsonl", "part-00000.jsonl", "rejects.jsonl", "manifest.json"):
        (tmp_path / name).touch()
    assert [path.name for path in files_of([tmp_path])] == ["part-00000.jsonl", "part-00001.jsonl"]
    assert files_of([tmp_path / "rejects.jsonl"]) == [tmp_path / "rejects.jsonl"]
    with pytest.raises(ValueError, match="nowhere does not exist: name files of records"):
        files_of([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no part-\*"):
        files_of([tmp_path / "empty"])
