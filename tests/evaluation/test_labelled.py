# SPDX-License-Identifier: Apache-2.0
"""The labelled thinking that the package ships, and how a reader is measured on it."""

import json
from collections import Counter

import pytest

from verl_p2r.evaluation.labelled import labelled_thinking, reading_quality
from verl_p2r.evaluation.mismatch import stated_option

CASES = labelled_thinking()


def test_the_shipped_cases_cover_every_kind_and_letters_at_every_place():
    kinds = Counter(case.kind for case in CASES)
    assert len(CASES) == len({case.id for case in CASES}) == 36
    assert min(kinds[kind] for kind in ("stated", "option's text", "corrected", "implied", "misleading letters")) >= 4
    assert {case.letter for case in CASES} == {None, *"ABCD"}
    assert sum(case.letter is None for case in CASES) == 9


def test_the_rule_is_never_wrong_on_them_and_reads_what_is_stated():
    for case in CASES:
        letter = stated_option(case.think, case.options)
        assert letter in (case.letter, None), case.id
        if case.kind in ("stated", "option's text"):
            assert letter == case.letter, case.id


def test_the_quality_by_hand():
    """Six readings: three are right, two are wrong letters, and one letter was not read."""
    cases = [next(case for case in CASES if case.letter == letter) for letter in "ABC"] * 2
    letters = ["A", "B", "C", "B", None, "A"]
    found = reading_quality(cases, letters)
    assert found["n"] == 6
    assert found["right"] == pytest.approx(0.5)
    assert (found["low"], found["high"]) == (pytest.approx(0.1876, abs=1e-4), pytest.approx(0.8124, abs=1e-4))
    assert found["wrong"] == pytest.approx(2 / 6)
    assert found["missed"] == pytest.approx(1 / 6)
    undecided = next(case for case in CASES if case.letter is None)
    assert reading_quality([undecided], [None])["right"] == 1
    assert reading_quality([undecided], ["A"])["wrong"] == 1


def test_a_users_cases(tmp_path):
    good = {"id": "1", "kind": "mine", "question": "?", "options": ["A. x", "B. y"], "think": "x", "letter": "A"}
    file = tmp_path / "cases.jsonl"
    file.write_text(json.dumps({**good, "note": "other fields are allowed"}) + "\n\n")
    assert [(case.id, case.letter) for case in labelled_thinking(file)] == [("1", "A")]
    for line, message in (
        ("no JSON", "line 1: not JSON"),
        (json.dumps({**good, "options": None}), "line 1: field options is missing or not a list"),
        (json.dumps({**good, "letter": "C"}), "field letter is 'C': give one of A, B"),
        ("", "holds no cases"),
    ):
        file.write_text(line)
        with pytest.raises(ValueError, match=message):
            labelled_thinking(file)
    with pytest.raises(ValueError, match="cannot be read"):
        labelled_thinking(tmp_path / "nowhere")
