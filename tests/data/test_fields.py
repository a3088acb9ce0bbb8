# SPDX-License-Identifier: Apache-2.0
"""Fields of records that are lists and mappings: read in any spelling, never evaluated; each bad one is told why."""

import json
import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from verl_p2r.data.errors import RowError
from verl_p2r.data.fields import MEDIA_FIELDS, facts_of, media_of, options_of
from verl_p2r.judge.facts import Fact
from verl_p2r.media.rules import MediaSettings

RULES = {
    "fps": 2.0,
    "nframes": 8,
    "min_frames": 4,
    "max_frames": 16,
    "video_start": 0.0,
    "video_end": 3.5,
    "min_pixels": 3136,
    "max_pixels": 100352,
    "total_pixels": 1605632,
    "resized_height": 112,
    "resized_width": 224,
}


@pytest.mark.parametrize("spell", [lambda rules: rules, str, json.dumps], ids=["plain", "python", "json"])
def test_media_rules_are_read_in_any_spelling(spell):
    assert media_of(spell(RULES), "video") == RULES
    sizes = {name: RULES[name] for name in MEDIA_FIELDS["image"]}
    assert media_of(spell(sizes), "image") == sizes


def test_media_rule_numbers_get_column_types():
    read = media_of({"fps": 2, "nframes": 8.0, "video_start": 0}, "video")
    assert read == {"fps": 2.0, "nframes": 8, "video_start": 0.0}
    assert [type(number) for number in read.values()] == [float, int, float]


def test_media_rule_numbers_may_be_text_decimal_or_numpy():
    # The CSV and parquet of pandas, of databases and of Spark.
    written = {
        "fps": "2",
        "nframes": Decimal(8),
        "video_start": " 0 ",
        "video_end": np.float32(1.5),
        "min_frames": "4.0",
    }
    read = media_of(written, "video")
    assert read == {"fps": 2.0, "nframes": 8, "video_start": 0.0, "video_end": 1.5, "min_frames": 4}
    assert [type(number) for number in read.values()] == [float, int, float, float, int]


NOTHING = [None, "", " ", "None", "null", "nan", "NaN", "<NA>", math.nan, Decimal("NaN"), Decimal("sNaN"), np.nan]
NOTHING += [np.float32("nan"), pd.NA, pd.NaT]


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_every_spelling_of_missing_value_is_unset(nothing):
    assert options_of(nothing) == []
    assert facts_of(nothing) is None
    assert media_of(nothing, "video") == media_of({"fps": nothing, "nframes": nothing}, "video") == {}


@pytest.mark.parametrize("nothing", [{}, "{}", {"fps": None}, "{'fps': None}", '{"fps": NaN}'])
def test_unset_media_rules_do_not_override_settings(nothing):
    assert media_of(nothing, "video") == {}
    assert MediaSettings().fill({"video": "a.mp4", **media_of(nothing, "video")}) == MediaSettings().fill(
        {"video": "a.mp4"}
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2 fps", r"field media is '2 fps': give a mapping, such as \{'fps': 2\}"),
        ("[2]", r"field media is \[2\]: give a mapping"),
        (["fps", 2], "give a mapping"),
        (2, "give a mapping"),
        ("dict(fps=2)", "give a mapping"),
        ("__import__('os').abort()", "give a mapping"),
        ("{" * 5000, "give a mapping"),
        ({"frames": 8}, "field media holds 'frames': for videos give fps, nframes, min_frames"),
        ("{'video': '/etc/passwd'}", "field media holds 'video': for videos give fps"),
        ({1: 2}, "field media holds 1: for videos give fps"),
        ({"fps": "two"}, "field media.fps is 'two': give a number above 0"),
        ({"fps": "0x10"}, "field media.fps is '0x10': give a number above 0"),
        ({"fps": "1_000"}, "field media.fps is '1_000': give a number above 0"),
        ({"fps": "Infinity"}, "field media.fps is 'Infinity': give a number above 0"),
        ({"fps": Decimal("Infinity")}, r"field media.fps is Decimal\('Infinity'\): give a number above 0"),
        ({"fps": 10**400}, "field media.fps is 1000"),
        ({"fps": 10**5000}, "field media.fps is an int that is too long to show: give a number above 0"),
        ({"nframes": Decimal("7.5")}, "field media.nframes is Decimal.*: give a whole number above 0"),
        ({"nframes": "7.5"}, "field media.nframes is '7.5': give a whole number above 0"),
        ("{{'fps': 2}}", "field media is .*: give a mapping"),  # a mapping in a set
        ("{['fps']: 2}", "field media is .*: give a mapping"),  # a list as a key
        ({"fps": True}, "field media.fps is True: give a number above 0"),
        ({"fps": [2]}, r"field media.fps is \[2\]: give a number"),
        ({"fps": math.inf}, "field media.fps is inf: give a number above 0"),
        ("{'fps': 1e999}", "field media.fps is inf"),
        ({"fps": -1}, "field media.fps is -1: give a number above 0"),
        ({"fps": 0}, "field media.fps is 0: give a number above 0"),
        ({"video_start": -0.5}, "field media.video_start is -0.5: give a number at least 0"),
        ({"video_end": 0}, "field media.video_end is 0: give a number above 0"),
        ({"nframes": 7.5}, "field media.nframes is 7.5: give a whole number above 0"),
        ({"max_pixels": 10**30}, "field media.max_pixels is 1000"),  # more than a column holds
    ],
)
def test_bad_media_rules_error_gives_remedy(value, message):
    with pytest.raises(RowError, match=message) as caught:
        media_of(value, "video")
    assert (caught.value.field, caught.value.reason) == ("media", "bad media")


@pytest.mark.parametrize("name", ["fps", "nframes", "video_start", "total_pixels"])
def test_time_rules_are_refused_for_images(name):
    with pytest.raises(RowError, match=f"field media holds '{name}': for images give min_pixels, max_pixels, resized_"):
        media_of({name: 1}, "image")


@pytest.mark.parametrize("spell", [lambda facts: facts, str, json.dumps], ids=["plain", "python", "json"])
def test_facts_are_normalised_without_changing_meaning(spell):
    facts = ["two balls", {"state": "it's red", "not": ["blue", 'a "green" one']}, {"state": "left", "not": None}]
    read = facts_of(spell(facts))
    assert read == [
        {"state": "two balls", "not": []},
        {"state": "it's red", "not": ["blue", 'a "green" one']},
        {"state": "left", "not": []},
    ]
    assert Fact.parse_all(read) == Fact.parse_all(facts)


@pytest.mark.parametrize("nothing", [None, "", "None", "null", "nan", [], "[]"])
def test_every_spelling_of_missing_facts_is_none(nothing):
    assert facts_of(nothing) is None


@pytest.mark.parametrize(
    "value", ["red", 5, {"state": "red"}, [5], ["…"], [{"state": "red", "no": ["blue"]}], "['red', ['blue']]", "{[1]}"]
)
def test_invalid_facts_are_refused_with_field(value):
    with pytest.raises(RowError, match=r"^field facts: ") as caught:
        facts_of(value)
    assert (caught.value.field, caught.value.reason) == ("facts", "bad facts")
