# SPDX-License-Identifier: Apache-2.0
"""Records of Video-R1 and of the VideoP2R release become verl's columns; each bad one is told what is wrong."""

import json

import pyarrow as pa
import pytest

from verl_p2r.accuracy import PROBLEM_TYPES
from verl_p2r.data.columns import SCHEMA, rl_columns, to_table
from verl_p2r.data.errors import RowError
from verl_p2r.data.fields import MEDIA_FIELDS
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record
from verl_p2r.data.rows import Row
from verl_p2r.data.tables import read_json
from verl_p2r.judge.facts import Fact

BARE = PromptTemplate("{question}", {})


def columns_of(raw, index: int, template: PromptTemplate) -> dict:
    """The row of a JSON value, as the datasets of a run make it."""
    return rl_columns(Record.parse(raw, index=index, relative_path=False), index, template)


def record(**changes) -> dict:
    """A record as Video-R1 has it."""
    return {
        "problem_id": 12,
        "problem": "Which ball moves first?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. the red one", "B. the blue one"],
        "process": "<think>…</think>",
        "solution": "<answer>B</answer>",
        "path": "./CLEVRER/train/video_1.mp4",
        "data_source": "CLEVRER",
        **changes,
    }


def stringified(**changes) -> dict:
    """The same as the VideoP2R release has it: every value a text."""
    texts = {"problem_id": "12", "options": "['A. the red one', 'B. the blue one']", "reward": "1.0", "select": "True"}
    return record(**{**texts, **changes})


@pytest.mark.parametrize("make", [record, stringified])
def test_record_becomes_verl_columns(make):
    # Video-R1's assembly: the problem, "Options:" and one option a line.
    question = "Which ball moves first?Options:\nA. the red one\nB. the blue one\n"
    assert columns_of(make(), 5, BARE) == {
        "data_source": "CLEVRER",
        "prompt": [{"role": "user", "content": f"<video>{question}"}],
        "images": None,
        "videos": [{"video": "./CLEVRER/train/video_1.mp4"}],
        "reward_model": {"style": "rule", "ground_truth": "<answer>B</answer>"},
        "extra_info": {
            "index": 5,
            "question": question,
            "options": ["A. the red one", "B. the blue one"],
            "problem_type": "multiple choice",
            "problem_id": "12",
            "facts": None,
        },
    }


def test_verl_columns_read_back_as_row():
    assert Row.from_columns(columns_of(stringified(), 5, BARE)) == Row(
        name="CLEVRER row 5",
        problem_type="multiple choice",
        solution="<answer>B</answer>",
        question="Which ball moves first?Options:\nA. the red one\nB. the blue one\n",
        options=("A. the red one", "B. the blue one"),
    )


def test_image_record_has_images_column_only():
    columns = columns_of(record(data_type="image", path="./Chart/a.png"), 0, BARE)
    assert (columns["images"], columns["videos"]) == ([{"image": "./Chart/a.png"}], None)
    assert columns["prompt"][0]["content"].startswith("<image>")


@pytest.mark.parametrize(
    ("options", "read"),
    [
        (["A. 1", "B. 2"], ["A. 1", "B. 2"]),
        ("""["A. it's", 'B. "no"']""", ["A. it's", 'B. "no"']),
        ('["A. \\u00e9", "B. /"]', ["A. é", "B. /"]),
        ('["A", null]', None),  # JSON, and not a list of texts
        ([1, 2.5], ["1", "2.5"]),
        ("[]", []),
        ("", []),
        (None, []),
        ("A. red B. blue", None),
        ("__import__('os').abort()", None),
        ("[" * 5000, None),
        ({"A": "red"}, None),
    ],
)
def test_options_are_parsed_and_never_evaluated(options, read):
    if read is not None:
        assert columns_of(record(options=options), 0, BARE)["extra_info"]["options"] == read
        return
    with pytest.raises(RowError, match=r"field options is .*give a list of texts") as caught:
        columns_of(record(options=options), 0, BARE)
    assert caught.value.reason == "unreadable options"


def test_only_multiple_choice_questions_list_options():
    assert columns_of(record(problem_type="free-form"), 0, BARE)["extra_info"]["question"] == "Which ball moves first?"
    assert columns_of(record(options=[]), 0, BARE)["extra_info"]["question"] == "Which ball moves first?"


def test_options_already_in_problem_are_not_listed_twice():
    problem = "Which ball?\nA. red\nB. blue"
    columns = columns_of(record(problem=problem, options=["red", "blue"]), 0, BARE)
    assert columns["extra_info"]["question"] == problem
    assert columns["extra_info"]["options"] == ["red", "blue"]
    for other in (["blue", "red"], ["red", "blue", "green"], ["blue"], ["A. red", "B. blue"]):
        question = columns_of(record(problem=problem, options=other, solution="blue"), 0, BARE)["extra_info"][
            "question"
        ]
        assert question == problem + "Options:\n" + "".join(f"{option}\n" for option in other)


@pytest.mark.parametrize("spell", [lambda value: value, str, json.dumps], ids=["plain", "python", "json"])
def test_record_media_rules_and_facts_reach_columns(spell):
    media, facts = {"video_start": 60, "video_end": 90.5, "nframes": 16}, ["red", {"state": "left", "not": ["right"]}]
    columns = columns_of(record(media=spell(media), facts=spell(facts)), 0, BARE)
    assert columns["videos"] == [{"video": "./CLEVRER/train/video_1.mp4", **media}]
    assert columns["extra_info"]["facts"] == [{"state": "red", "not": []}, {"state": "left", "not": ["right"]}]
    assert Row.from_columns(columns).facts == (Fact("red"), Fact("left", ("right",)))
    columns = columns_of(record(data_type="image", media={"max_pixels": 50176}), 0, BARE)
    assert columns["images"] == [{"image": "./CLEVRER/train/video_1.mp4", "max_pixels": 50176}]


def test_media_placeholders_in_question_text_are_removed():
    columns = columns_of(record(problem="<image>\nWhich <video>?", options=[], data_type="image"), 0, BARE)
    assert columns["prompt"][0]["content"] == "<image>\nWhich ?"


@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [("", "./STAR/a.mp4", "STAR"), (None, "/data/STAR/a.mp4", "data"), (" ", "a.mp4", "unknown"), ("x", "a", "x")],
)
def test_a_blank_data_source_becomes_the_first_folder(source, path, expected):
    assert columns_of(record(data_source=source, path=path), 0, BARE)["data_source"] == expected


@pytest.mark.parametrize("solution", [3, 3.5])
def test_a_number_as_solution_becomes_text(solution):
    columns = columns_of(record(problem_type="numerical", solution=solution), 0, BARE)
    assert columns["reward_model"]["ground_truth"] == str(solution)


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (record(problem_type="essay"), "unknown problem type", "field problem_type is 'essay': give one of"),
        (record(data_type="audio"), "unknown data type", "field data_type is 'audio': give image or video"),
        (record(solution=""), "no ground truth", "field solution is '': give a text, or drop the record"),
        (record(solution=None), "no ground truth", "field solution is None"),
        (record(solution=True), "no ground truth", "field solution is True"),
        (record(path=None), "no path", "field path is None"),
        (record(problem=" "), "no problem", "field problem is ' '"),
        (record(media={"fps": -2}), "bad media", "field media.fps is -2: give a number above 0"),
        (
            record(media={"fps": 2}, data_type="image"),
            "bad media",
            "field media holds 'fps': for images give min_pixels",
        ),
        (record(facts="red"), "bad facts", "field facts: facts 'red': give a list"),
        (["a"], "unreadable record", "the record is a list: it must be a JSON object"),
        (None, "unreadable record", "the record is a NoneType"),
    ],
)
def test_bad_record_error_gives_field_reason_and_remedy(bad, reason, message):
    with pytest.raises(RowError) as caught:
        columns_of(bad, 0, BARE)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(message)


def test_bad_record_does_not_affect_rest_of_batch():
    # Options that are None in one row and a list in the next, solutions of several types: the schema is given, not
    # inferred from the first rows.
    records = [record(options=None, solution=3, problem_type="numerical"), record(path=None), record(), stringified()]
    records.append(record(media={"fps": 1, "max_frames": 8}, facts=["red"]))
    table, errors = to_table(records, BARE, batch=2)
    assert table.schema == SCHEMA
    assert list(errors) == [1]
    rows = table.to_pylist()
    assert rows[1] == dict.fromkeys(SCHEMA.names)
    for row in (0, 2, 3, 4):
        expected = columns_of(records[row], row, BARE)
        (video,) = expected["videos"]
        expected["videos"] = [{**dict.fromkeys(("video", *MEDIA_FIELDS["video"])), **video}]
        assert rows[row] == expected


@pytest.mark.parametrize("texts", [False, True])
def test_tables_with_and_without_facts_can_be_concatenated(texts):
    table, _ = to_table([record(), record(path=None)], BARE)
    assert table.schema.names == SCHEMA.names
    facts = ["red"] if texts else [{"state": "red", "not": ["blue"]}]
    row = {**columns_of(record(), 0, BARE), "extra_info": {"index": 0, "facts": facts}}
    both = pa.concat_tables([pa.Table.from_pylist([row]), table], promote_options="permissive").to_pylist()
    assert [(one["extra_info"] or {}).get("facts") for one in both] == [facts, None, None]


def test_broken_line_in_records_file_is_one_bad_record(tmp_path):
    (tmp_path / "a.json").write_text('\ufeff{"problem": 1}\n{"prob\n{"problem": 2}\n', encoding="utf-8")
    first, broken, last = read_json(str(tmp_path / "a.json"))
    assert (first, last) == ({"problem": 1}, {"problem": 2})
    assert isinstance(broken, RowError)
    assert broken.reason == "unreadable record"


@pytest.mark.parametrize(("content", "why"), [(None, "No such file or directory"), (b"\xe9", "it is not UTF-8")])
def test_a_template_that_cannot_be_read_is_named(tmp_path, content, why):
    if content:
        (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"prompt template '.*t\.txt' cannot be read \({why}\): name a text file"):
        PromptTemplate.load(str(tmp_path / "t.txt"))


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_default_template_asks_for_all_parts_and_answer_form(problem_type):
    template = PromptTemplate.load("process_aware")
    text = template.render("How {many}? {answer_form}", problem_type)
    assert text.startswith("How {many}? {answer_form}\n\n")  # what a question holds stays as it is
    for part in ("observation", "think", "answer"):
        assert f"<{part}>" in text
        assert f"</{part}>" in text
    assert "Based on the question, I need to notice" in text
    assert "Based on the observations" in text
    assert text.count(template.answer_forms[problem_type]) == 1
    assert "[multiple choice]" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no slot", r"mine lacks \{question\}"),
        (
            "{question} {answer_form}\n[OCR]\nText.",
            r"has no text under \[multiple choice\], \[numerical\], \[free-form\]",
        ),
    ],
)
def test_a_template_without_its_slots_or_sections_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        PromptTemplate.parse(text, "mine")


def test_template_without_answer_forms_is_accepted(tmp_path):
    (tmp_path / "mine.txt").write_text("Look.\n{question}\n")
    assert PromptTemplate.load(str(tmp_path / "mine.txt")).render("Why?", "OCR") == "Look.\nWhy?"
