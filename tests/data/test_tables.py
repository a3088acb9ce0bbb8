# SPDX-License-Identifier: Apache-2.0
"""Files of rows as tables: read by content, nothing decoded, and a bad row costs itself alone."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_p2r.data.errors import RowError
from verl_p2r.data.tables import joined, read_table, rows_of, rows_table

GOOD = {"prompt": [{"role": "user", "content": "Why?"}], "extra_info": {"index": 1}, "problem_type": "OCR"}
LOOSE = ("prompt", "images")


def rows(path, text, **settings):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    table, errors = read_table(str(path), lambda records: pytest.fail("no records"), LOOSE)
    return table.to_pylist(), errors


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("zipped", [False, True])
def test_json_rows_are_read_with_any_file_extension(tmp_path, name, lines, mark, zipped):
    text = mark + ("\n".join([json.dumps(GOOD)] * 3) if lines else json.dumps([GOOD] * 3))
    data = gzip.compress(text.encode()) if zipped else text.encode()
    assert rows(tmp_path / name, data) == ([GOOD] * 3, {})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (5, "unreadable record"),
        ("text", "unreadable record"),
        ([GOOD], "unreadable record"),
        ({**GOOD, "problem_type": ["OCR"]}, "wrong columns"),
        ({**GOOD, "extra_info": "none"}, "wrong columns"),
        ({**GOOD, "extra_info": {"index": "one"}}, "wrong columns"),
        ({**GOOD, "extra_info": {"index": 10**30}}, "wrong columns"),
        ({**GOOD, "note": "\ud800"}, "invalid UTF-8"),
        ({**GOOD, "note": json.loads("[" * 200 + "]" * 200)}, "nested too deeply"),
    ],
    ids=lambda value: repr(value)[-30:],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_row_of_wrong_shape_is_the_only_one_rejected(bad, reason, place):
    values = [GOOD, GOOD]
    values.insert(place, bad)
    table, errors = rows_table(values, LOOSE)
    assert {row: error.reason for row, error in errors.items()} == {place: reason}
    read = [{name: row[name] for name in GOOD} for row in table.to_pylist()]
    assert [row for i, row in enumerate(read) if i != place] == [GOOD, GOOD]


def test_message_and_media_shapes_may_differ_between_rows():
    parts = {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}], "images": ["a.png"]}
    values = [GOOD, parts, {"prompt": "[]", "images": [{"image": "a.png"}]}]
    table, errors = rows_table(values, LOOSE)
    assert not errors
    prompts = [row["prompt"] for row in table.to_pylist()]
    assert [json.loads(prompt) for prompt in prompts] == [GOOD["prompt"], parts["prompt"], []]


@pytest.mark.parametrize("data", [b"", b"[]", b"\n\n"])
def test_file_without_rows_is_an_error(tmp_path, data):
    with pytest.raises(ValueError, match=r"a\.json: holds no rows"):
        rows(tmp_path / "a.json", data)


@pytest.mark.parametrize("whole", [gzip.compress(json.dumps([GOOD] * 999).encode()), json.dumps([GOOD] * 3).encode()])
def test_damaged_json_file_is_an_error(tmp_path, whole):
    with pytest.raises(ValueError, match=r"a\.json: the file is damaged here"):
        rows(tmp_path / "a.json", whole[:-20])


def test_invalid_parquet_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"a\.parquet: cannot be read as parquet"):
        rows(tmp_path / "a.parquet", b"<html>404</html>")


def test_hugging_face_features_are_read_as_stored(tmp_path):
    stored = {"bytes": b"half an image", "path": None}
    dataset = datasets.Dataset.from_list([{"images": [stored], "kind": "a"}])
    features = datasets.Features({"images": [datasets.Image()], "kind": datasets.ClassLabel(names=["a"])})
    dataset.cast(features).to_parquet(str(tmp_path / "a.parquet"))
    table, _ = read_table(str(tmp_path / "a.parquet"), lambda records: None, LOOSE)
    assert datasets.Dataset(table)[0] == {"images": [stored], "kind": 0}


def test_dictionary_columns_and_hive_style_folders_are_read_plainly(tmp_path):
    (tmp_path / "split=train").mkdir()
    path = tmp_path / "split=train" / "a.parquet"
    pq.write_table(pa.table({"kind": pa.array(["a", "b", "a"]).dictionary_encode()}), path)
    table, _ = read_table(str(path), lambda records: None, LOOSE)
    assert table.to_pydict() == {"kind": ["a", "b", "a"]}
    assert datasets.Dataset(table)[1] == {"kind": "b"}


def test_a_row_that_arrow_cannot_convert_is_one_error():
    texts = pa.array([b"one", b"\xff\xfe", b"three"] * 20).cast(pa.binary()).view(pa.string())
    dataset = datasets.Dataset(pa.table({"text": texts}), fingerprint="a")
    read = list(rows_of(dataset))
    assert [row["text"] for row in read if not isinstance(row, RowError)] == ["one", "three"] * 20
    assert {row.reason for row in read if isinstance(row, RowError)} == {"invalid UTF-8"}


def test_tables_with_different_media_shapes_are_joined():
    tables = [
        pa.table({"images": [["a.png"]], "n": [1]}),
        pa.table({"images": [[{"image": "\U0001f600.png"}]], "n": [2]}),
    ]
    table = joined(tables, ["a.jsonl", "b.jsonl"], loose=("images",))
    assert [json.loads(text) for text in table["images"].to_pylist()] == [["a.png"], [{"image": "\U0001f600.png"}]]
    assert table["n"].to_pylist() == [1, 2]
    with pytest.raises(ValueError, match=r"a\.jsonl, b\.jsonl: their columns do not fit together"):
        joined(tables, ["a.jsonl", "b.jsonl"])
