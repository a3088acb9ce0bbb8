# SPDX-License-Identifier: Apache-2.0
"""JSON lists and lines value by value: whole files read as json.loads reads them, bad values harm no neighbours."""

import gzip
import json
import random
import tracemalloc
import zlib
from pathlib import Path

import pytest

from verl_p2r.data import reading
from verl_p2r.data.errors import RowError
from verl_p2r.data.reading import DAMAGE, read_values


def read(path: Path, data: bytes | str) -> list:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(read_values(path))


def shown(raws: list) -> list:
    """Values with their lines; of an error its reason."""
    return [(raw.line, raw.value.reason if isinstance(raw.value, RowError) else raw.value) for raw in raws]


TEXTS = ["", "été 😀 \\u00e9", 'a "quoted" \\ one', "},{", "], [", "line\nbreak", "\u2028", "x" * 300]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_values_equal_json_loads(tmp_path, monkeypatch, chunk, zipped, indent):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    draw = random.Random(chunk)
    values = [
        {"n": i, "t": draw.choice(TEXTS), "f": -1.5e-3, "o": [{"k": draw.choice(TEXTS)}, None, True]} for i in range(20)
    ]
    for ascii_only in (True, False):
        listed = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
        lines = b"\n".join(json.dumps(value, ensure_ascii=ascii_only).encode() + b"\r\n" for value in values)
        for data in (listed, lines, b"\xef\xbb\xbf \n" + listed):
            assert [raw.value for raw in read(tmp_path / "a", gzip.compress(data) if zipped else data)] == values


def test_json_values_have_line_numbers(tmp_path):
    assert shown(read(tmp_path / "a", '\n[\n{"a":\n1},{"b": 2},\n\n{"c": 3}\n]\n')) == [
        (3, {"a": 1}),
        (4, {"b": 2}),
        (6, {"c": 3}),
    ]
    assert shown(read(tmp_path / "a", '\n{"a": 1}\n\n{"b": 2}')) == [(2, {"a": 1}), (4, {"b": 2})]


def test_concatenated_gzip_members_are_read(tmp_path):
    parts = gzip.compress(b'[{"a": 1}]') + gzip.compress(b'\n[{"b": 2}]')
    assert [raw.value for raw in read(tmp_path / "a", parts)] == [{"a": 1}, {"b": 2}]


BAD_ITEMS = [
    '{"a" 1}',
    '{"a": "x "y" z"}',
    "{'a': 1}",
    '{"a": nul}',
    '{"a": "\\x"}',
    '{"a": "tab\there"}',
    '{"a": 1,}',
    '{"a": 1',
    '{"n": ' + "1" * 5000 + "}",
    "[" * 100_000,
    '{"a": [{"b": 1}, {"b" 2}, {"b": 3}]}',
]


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize("bad", BAD_ITEMS, ids=range(len(BAD_ITEMS)))
def test_bad_json_value_does_not_affect_others(tmp_path, monkeypatch, bad, chunk):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    good = [{"good": i} for i in range(4)]
    texts = [json.dumps(g) for g in good]
    listed = "[" + ",\n".join([*texts[:2], bad, *texts[2:]]) + "]"
    lines = "\n".join([*texts[:2], bad, *texts[2:]])
    for data in (listed, lines):
        raws = read(tmp_path / "a", data)
        assert [raw.value for raw in raws if isinstance(raw.value, dict) and "good" in raw.value] == good
        assert not any(isinstance(raw.value, RowError) and raw.value.reason == DAMAGE for raw in raws)
    assert shown(read(tmp_path / "a", lines))[2] == (3, "unreadable record")


def test_bad_json_item_is_reported_with_its_line(tmp_path):
    raws = read(tmp_path / "a", '[{"a": 1},\n{"b" 2},\n{"c": 3}]')
    assert shown(raws) == [(1, {"a": 1}), (2, "unreadable record"), (3, {"c": 3})]
    assert "it is not JSON (Expecting ':' delimiter" in raws[1].value.problem


@pytest.mark.parametrize("data", ['[{"a": 1}, {"b": 2}', '[{"a": 1}, {"b": 2},', '[{"a": 1}, {"b": 2}, {"c": "x'])
def test_unterminated_json_list_is_damage(tmp_path, data):
    assert shown(read(tmp_path / "a", data)) == [(1, {"a": 1}), (1, {"b": 2}), (1, DAMAGE)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("as_list", [True, False])
def test_truncated_archive_gives_readable_values_and_one_error(tmp_path, share, as_list):
    draw = random.Random(0)
    values = [{"n": i, "t": draw.randbytes(50).hex()} for i in range(2000)]
    data = json.dumps(values) if as_list else "\n".join(map(json.dumps, values))
    whole = gzip.compress(data.encode())
    *good, last = read(tmp_path / "a", whole[: int(share * len(whole))])
    assert last.value.reason == DAMAGE
    assert "end-of-stream" in last.value.problem
    assert [raw.value for raw in good] == values[: len(good)]
    # An independent count: what zlib gives of so much of the stream.
    left = zlib.decompressobj(31).decompress(whole[: int(share * len(whole))])
    assert len(good) == left.count(b"}" if as_list else b"}\n")


def test_corrupt_archive_and_non_json_file_are_errors(tmp_path):
    whole = bytearray(gzip.compress(json.dumps([{"n": i} for i in range(5000)]).encode()))
    whole[len(whole) // 2] ^= 0xFF
    assert shown(read(tmp_path / "a", bytes(whole)))[-1][1] == DAMAGE
    assert {reason for _, reason in shown(read(tmp_path / "a", b"PAR1\x00\x01\n\xff"))} == {"unreadable record"}
    assert read(tmp_path / "a", b"") == []


def test_invalid_utf8_bytes_are_kept_in_their_value(tmp_path):
    first, second = read(tmp_path / "a", b'[{"a": "\xe9t"}, {"b": "\xc3\xa9"}]')
    assert (first.value, second.value) == ({"a": "\udce9t"}, {"b": "é"})


def test_overlong_json_value_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST", 1000)
    monkeypatch.setattr(reading, "CHUNK", 100)
    long = '{"a": "' + "x" * 5000 + '"}'
    assert shown(read(tmp_path / "a", f'{{"b": 1}}\n{long}\n{{"c": 1}}')) == [
        (1, {"b": 1}),
        (2, "unreadable record"),
        (3, {"c": 1}),
    ]
    values = shown(read(tmp_path / "a", f'[{{"b": 1}},\n{long},\n{{"c": 1}}]'))
    assert values == [(1, {"b": 1}), (2, "unreadable record"), (3, {"c": 1})]


@pytest.mark.parametrize("as_list", [True, False])
def test_memory_does_not_grow_with_the_file(tmp_path, as_list):
    def peak(count: int) -> int:
        line = json.dumps({"problem": "x" * 1000})
        text = "[" + ",\n".join([line] * count) + "]" if as_list else "\n".join([line] * count)
        (tmp_path / "a").write_bytes(gzip.compress(text.encode(), 1))
        del text
        tracemalloc.start()
        for _ in read_values(tmp_path / "a"):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(20_000) < 1.5 * peak(4_000)


def test_missing_file_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_values(tmp_path / "nowhere"))


def test_progress_counts_every_byte(tmp_path):
    told: list[int] = []
    data = gzip.compress(json.dumps([{"n": i} for i in range(50_000)]).encode())
    (tmp_path / "a").write_bytes(data)
    assert len(list(read_values(tmp_path / "a", told.append))) == 50_000
    assert sum(told) == len(data)
