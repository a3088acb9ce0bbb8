# SPDX-License-Identifier: Apache-2.0
"""Single values as files and libraries write them: read or refused, shown in errors, and never an exception."""

import ast
import json
import math
import random
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from verl_p2r.data.errors import RowError
from verl_p2r.data.values import DEEPEST, check_values, is_unset, plain, read_number, read_text, shown


class Broken:
    """A value whose every method fails."""

    def __repr__(self):
        raise RuntimeError

    def tolist(self):
        raise RuntimeError


def nested(levels: int):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


HOSTILE = [
    Broken(),
    10**5000,
    nested(900),
    {1: {2: {3}}},
    b"\xff\xfe",
    "\ud800",
    "x" * 100_000,
    Decimal("sNaN"),
    complex(1, 2),
    np.zeros((2, 2)),
    np.array([{"a": 1}], object),
    pd.NA,
    pa.scalar("a"),
    object,
    print,
    {"a", "b"},
    "{[]: 1}",
    "{{}}",
    "[" * 5000,
    "-" * 5000 + "1",
    "9" * 5000,
    "a\0b",
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)
def test_hostile_values_never_raise(value):
    plain(value), is_unset(value), read_number(value), read_text(value)
    text = shown(value)
    assert len(text) <= 200
    text.encode()


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("2", 2),
        ("-2.50", -2.5),
        ("+1e3", 1000.0),
        (".5", 0.5),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.array(7), 7),
        (Decimal("2.5"), 2.5),
        (Decimal("1E+2"), 100),
        (Fraction(1, 2), 0.5),
        (pa.scalar(4), 4),
        (True, None),
        (np.bool_(True), None),
        ("", None),
        ("1,000", None),
        ("1_000", None),
        ("0x10", None),
        ("inf", None),
        ("nan", None),
        ("٣", None),  # digits of another script
        ("9" * 65, None),
        (math.inf, None),
        (10**400, None),
        (Decimal("1E+400"), None),
        ([2], None),
        (None, None),
    ],
)
def test_numbers_are_read_in_every_spelling(value, number):
    assert read_number(value) == number
    assert type(read_number(value)) is type(number)


@pytest.mark.parametrize("levels", [DEEPEST - 1, DEEPEST, DEEPEST + 1, 900])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: {"a": v}], ids=["lists", "a mapping of them"])
def test_deeply_nested_values_are_refused(levels, wrap):
    row = {"good": 1, "extra": wrap(nested(levels))}
    if len(json.dumps(row["extra"]).split("1")[0].replace('{"a": ', "[")) <= DEEPEST:  # brackets that open
        check_values(row)
        return
    with pytest.raises(RowError, match=f"^field extra is nested deeper than {DEEPEST} levels") as caught:
        check_values(row)
    assert (caught.value.field, caught.value.reason) == ("extra", "nested too deeply")


@pytest.mark.parametrize("row", [{"a": "\ud800"}, {"a": ["é", "\udc80"]}, {"a": {"\ud800": 1}}, {"\ud800": "é"}])
def test_text_with_invalid_unicode_is_refused(row):
    with pytest.raises(RowError, match="holds bytes that are not UTF-8") as caught:
        check_values(row)
    assert caught.value.reason == "invalid UTF-8"
    str(caught.value).encode()


def test_ordinary_rows_pass_value_check():
    check_values({"a": "été", "b": [1, "日本"], "c": None, "d": 2.5, "e": {"f": []}})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["A. \\ud83d\\ude00"]', ["A. \U0001f600"]),  # as `json.dumps` writes it
        ("['A. \\U0001f600']", ["A. \U0001f600"]),
        ('["A. \\ud83d"]', '["A. \\ud83d"]'),  # half a pair is not a character, so the text is not decoded
        ("['A. \\ud83d']", "['A. \\ud83d']"),
        ('{"a": ["\\udc00"]}', '{"a": ["\\udc00"]}'),
    ],
)
def test_escapes_in_list_texts_are_decoded_or_refused(text, value):
    assert read_text(text) == value


def test_list_literals_are_read_like_python():
    rng = random.Random(0)
    pieces = [
        "A. red",
        "'",
        '"',
        "', '",
        "\\",
        "\\'",
        "[",
        "]",
        ",",
        ", ",
        " ",
        "\r",
        "\n",
        "\0",
        "\ud800",
        "é",
        "😀",
        "",
    ]
    read = 0
    for _ in range(20_000):
        items = ["".join(rng.choices(pieces, k=rng.randint(0, 3))) for _ in range(rng.randint(0, 3))]
        text = "[" + ", ".join(repr(item) if rng.random() < 0.5 else f"'{item}'" for item in items) + "]"
        try:
            expected = ast.literal_eval(text)
        except (ValueError, SyntaxError):  # not a list that Python reads
            continue
        if "\ud800" not in "".join(map(str, expected)):
            assert read_text(text) == expected
            read += 1
    assert read > 5000
