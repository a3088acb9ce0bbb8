# SPDX-License-Identifier: Apache-2.0
"""A row read from verl's columns: what is found where, and what each bad row is told."""

import pickle

import numpy as np
import pytest

from verl_p2r.accuracy import PROBLEM_TYPES
from verl_p2r.data.rows import Row
from verl_p2r.judge import Fact


def columns(**changes) -> dict:
    row = {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": "<video>How many?"}],
        "problem_type": "numerical",
        "reward_model": {"ground_truth": "<answer>3</answer>"},
        "extra_info": {"index": 7, "split": "train"},
    }
    return {**row, **changes}


def test_columns_are_read_as_row():
    extra = {"index": 7, "split": "train", "question": "Which?", "options": np.array(["A. red", "B. blue"], object)}
    row = Row.from_columns(columns(problem_type="multiple choice", extra_info=extra))
    assert row == Row(
        name="train row 7",
        problem_type="multiple choice",
        solution="<answer>3</answer>",
        question="Which?",
        options=("A. red", "B. blue"),
    )


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_problem_type_may_be_column_or_extra_info(problem_type):
    assert Row.from_columns(columns(problem_type=problem_type)).problem_type == problem_type
    in_extra = columns(problem_type=None, extra_info={"problem_type": problem_type})
    assert Row.from_columns(in_extra).problem_type == problem_type


def test_row_name_falls_back_to_data_source():
    assert Row.from_columns(columns(extra_info={"index": 7})).name == "toy row 7"
    assert Row.from_columns(columns(extra_info=None)).name == "toy row ?"
    assert Row.from_columns(columns(), name="rl.parquet row 3").name == "rl.parquet row 3"


def test_the_question_is_the_last_user_turn_without_its_media():
    structured = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "reply"},
        {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "How many?"}]},
    ]
    assert Row.from_columns(columns(prompt=structured)).question == "How many?"
    without_prompt = columns(raw_prompt=structured)
    del without_prompt["prompt"]
    assert Row.from_columns(without_prompt).question == "How many?"
    assert Row.from_columns(columns(prompt=None)).question == ""


def test_row_facts_are_parsed():
    facts = ["moves left", {"state": "red", "not": np.array(["green", "blue"], object)}]
    row = Row.from_columns(columns(extra_info={"facts": facts}))
    assert row.facts == (Fact("moves left"), Fact("red", ("green", "blue")))
    assert Row.from_columns(columns()).facts is None


def test_media_are_found_where_the_dataset_puts_them():
    """In the turns of `raw_prompt`, as numpy arrays of mappings; placeholders and other parts are none."""
    clip = {"type": "video", "video": "/data/a.mp4", "fps": 2.0, "max_frames": 16}
    content = [{"type": "image", "image": b"png"}, clip, {"type": "text", "text": "How many?"}, {"type": "video"}]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    row = Row.from_columns(columns(raw_prompt=np.array(turns, object)))
    assert row.media == ({"type": "image", "image": b"png"}, clip)
    assert row.judge_request("three").media == row.media
    assert Row.from_columns(columns()).media == ()  # a placeholder in the text names no file
    unreadable = [{"role": "user", "content": [{"type": "video", "video": 7}, clip]}]
    assert Row.from_columns(columns(raw_prompt=unreadable)).media == (clip,)
    fetched = {"type": "video", "video": "http://host/a.mp4", "allow_urls": True}  # as from `data.p2r.allow_urls`
    assert Row.from_columns(columns(raw_prompt=[{"role": "user", "content": [fetched]}])).media == (fetched,)


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"problem_type": "essay"}, "problem_type is 'essay'", "give one of multiple choice"),
        ({"problem_type": None}, "problem_type is None", "give one of"),
        ({"reward_model": None}, "reward_model.ground_truth is None", "give the correct answer"),
        ({"reward_model": {}}, "reward_model.ground_truth is None", "give the correct answer"),
        ({"reward_model": {"ground_truth": " "}}, "reward_model.ground_truth is ' '", "drop the row"),
        ({"reward_model": {"ground_truth": 3}}, "reward_model.ground_truth is 3", "as text"),
        ({"extra_info": {"index": 7, "split": "train", "facts": 5}}, "extra_info.facts", "facts"),
    ],
)
def test_bad_row_error_names_row_field_and_remedy(changes, field, remedy):
    with pytest.raises(ValueError) as caught:
        Row.from_columns(columns(**changes))
    message = str(caught.value)
    assert message.startswith("train row 7: field ")
    assert field in message
    assert remedy in message
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (str(copied), vars(copied)) == (message, vars(caught.value))
