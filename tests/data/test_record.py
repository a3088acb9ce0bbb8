# SPDX-License-Identifier: Apache-2.0
"""A record is validated as itself: all published spellings read alike, and a bad field is named with its reason."""

import json

import pytest
from release_files import OBSERVATION, THINKING, release_record, stringified

from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Medium, Record

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
def test_all_published_spellings_give_same_record(lists):
    raw = release_record() if lists is None else stringified(release_record(), lists)
    record = Record.parse(raw)
    # What a field that is not ours holds stays as it was, text or not.
    assert record.extra == {"clean_version": 2 if lists is None else "2"}
    assert Record.parse({**raw, "clean_version": 2}) == EXPECTED


def test_video_r1_record_is_parsed():
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


def test_written_record_reads_back_unchanged():
    raw = release_record(note={"nested": ["é", None]}, zebra=None)
    record = Record.parse(raw)
    written = json.loads(json.dumps(record.to_json(), ensure_ascii=False))
    assert written["note"] == {"nested": ["é", None]}
    assert "zebra" in written
    assert Record.parse(written) == record


def test_record_media_and_facts_round_trip_in_any_spelling():
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
def test_record_fields_accept_any_spelling_of_missing(missing):
    record = Record.parse(release_record(reward=missing, select=missing, answer=missing, observation=missing))
    assert (record.reward, record.select, record.answer, record.observation) == (None, None, None, None)


def test_record_with_many_options_and_long_question_is_parsed():
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
def test_bad_record_field_is_named_with_reason(changes, field, reason, release):
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
def test_equivalent_answer_and_solution_do_not_conflict(changes):
    Record.parse(release_record(**changes))


@pytest.mark.parametrize("path", ["./a/b.mp4", "a//b.mp4", "a/./b.mp4", " a/b.mp4"])
def test_spellings_of_a_path_are_normalised(path):
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
def test_record_response_is_taken_from_output_or_its_parts(changes, response):
    assert Record.parse(release_record(**changes)).response == response


def identity(**changes) -> bytes:
    return Record.parse(release_record(**changes)).identity


def test_record_identity_depends_on_question_and_medium():
    own = identity()
    # What steps add or change, where it was read, and another spelling of the path do not matter.
    for changes in ({"output": "x"}, {"observation": "y"}, {"reward": 0}, {"note": 1}):
        assert identity(**changes) == own
    assert identity(path="STAR//Charades_v1_480/1ab.mp4") == own
    assert Record.parse(stringified(release_record()), file="a", line=7).identity == own
    other = [
        {"problem_id": 2},
        {"problem": "Which ball moves last?"},
        {"problem_type": "free-form"},
        {"data_type": "image"},
        {"path": "b.mp4"},
        {"solution": "B", "answer": "B"},
        {"options": ["A. the red one", "B. blue"]},
        {"media": {"fps": 1}},
        {"facts": ["red"]},
    ]
    assert len({own, *(identity(**changes) for changes in other)}) == 10


def test_run_records_may_have_absolute_paths_and_urls():
    for path in ("/data/a.mp4", "./a.mp4", "https://host/a.mp4"):
        assert Record.parse(release_record(path=path), relative_path=False).path == path
