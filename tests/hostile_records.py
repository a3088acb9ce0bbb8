# SPDX-License-Identifier: Apache-2.0
"""Records with hostile values, drawn at random: what a careless export, or an enemy, writes into JSON."""

import json
import random
from collections.abc import Iterator

DEEP = 400
GOOD = {
    "problem": "How many balls move?",
    "problem_type": "numerical",
    "data_type": "video",
    "solution": "<answer>3</answer>",
    "options": "[]",
    "observation": "Three balls roll to the left.",
    "process": "<think>I count three.</think>",
    "output": "<observation>Three balls roll.</observation><think>Three.</think><answer>3</answer>",
}

# JSON texts, so that what `json.dumps` cannot write is here too.
VALUES = [
    "null", "true", "false", "0", "-1", "3", "2.5", "1e999", "-Infinity", "NaN", "9" * 400, "9" * 5000, "[]", "{}",
    '""', '" "', '"nan"', '"None"', '"null"', '"NaN"', '"2"', '"0.5"', '"1e400"', '"inf"', '"true"', '"A"',
    '"a\\u0000b"',
    '"\\ud800"', '"\\udc80\\ud83d"', '"../x"', '"/etc/passwd"', '"a/../../b"', '"http://127.0.0.1:9/x"', '"file:///x"',
    '"data:image/png;base64,AAAA"', '"data:;base64,!"', '"concat:a|b"', json.dumps("n" * 300), json.dumps("a/" * 3000),
    '"{[]: 1}"', '"{{}}"', '"{[1]}"', '"[{{1}}]"', '"[[1]]"', '"[NaN]"', '"__import__(\'os\').abort()"', '"[1, None]"',
    json.dumps("[" * 5000), json.dumps("-" * 5000 + "1"), json.dumps("9" * 5000), '["a"]', "[null]", "[1, [2]]", "[{}]",
    '{"a": 1}', '{"fps": "2"}', '{"fps": "fast"}', '{"fps": NaN, "nframes": 4}', '{"nframes": ' + "9" * 400 + "}",
    '{"bytes": "AAAA", "path": null}', '{"url": "a.mp4"}', '{"type": "video_url", "video_url": {"url": "a.mp4"}}',
    '{"state": "red", "not": ["red"]}', '[{"state": ["red"]}]', '["A. red", "B. blue"]', '"[\'A. red\', \'B. blue\']"',
    '"multiple choice"', '"numerical"', '"free-form"', '"image"', '"video"', '"<answer></answer>"', '"<|im_end|>"',
    '"<|video_pad|>"', '"<image>"', "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, json.dumps("é" * 5000),
]  # fmt: skip
FIELDS = [
    *GOOD, "path", "problem_id", "data_source", "media", "facts", "answer", "reward", "select", "note", "verdict",
]  # fmt: skip
MEDIA_RULES = ["fps", "nframes", "min_frames", "max_frames", "video_start", "video_end", "max_pixels", "resized_height"]


def good_record(number: int, path: str) -> str:
    return json.dumps({**GOOD, "problem_id": f"good {number}", "path": path})


def hostile_record(draw: random.Random, number: int, path: str) -> str:
    """A good record with one to three of its fields replaced, as a line of JSON, or what is not JSON."""
    if draw.random() < 0.05:
        return draw.choice(["{", '{"problem": ', "[1, 2]", '"text"', "3", "null", "}{", "\x00", "[" * 2000, "nan"])
    texts = {name: json.dumps(value) for name, value in {**GOOD, "problem_id": f"bad {number}", "path": path}.items()}
    for name in draw.sample(FIELDS, draw.randint(1, 3)):
        texts[name] = draw.choice(VALUES)
    if draw.random() < 0.2:
        rules = (f'"{name}": {draw.choice(VALUES)}' for name in draw.sample(MEDIA_RULES, 2))
        texts["media"] = "{" + ", ".join(rules) + "}"
    for name in draw.sample(list(texts), draw.choice([0, 0, 0, 1])):
        del texts[name]
    return "{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}"


def lines(seed: int, count: int, path: str) -> Iterator[str]:
    """Hostile records, each behind a good one; one good record more ends the file."""
    draw = random.Random(seed)
    for number in range(count):
        yield good_record(number, path)
        yield hostile_record(draw, number, path)
    yield good_record(count, path)


def hostile_row(draw: random.Random, path: str) -> str:
    """A row of verl's columns with one or two values replaced, as a line of JSON."""
    columns = {
        "prompt": [{"role": "user", "content": "<video>How many?"}],
        "messages": [{"role": "user", "content": "<video>?"}, {"role": "assistant", "content": GOOD["output"]}],
        "videos": [{"video": path}],
        "problem_type": "numerical",
        "reward_model": {"ground_truth": "3"},
        "extra_info": {"index": 0, "question": "How many?"},
    }
    texts = {name: json.dumps(value) for name, value in columns.items()}
    for name in draw.sample(list(texts), draw.randint(1, 2)):
        value = draw.choice(VALUES)
        shapes = [value, f"[{value}]", f'[{{"video": {value}}}]', f'[{{"video": "{path}", "fps": {value}}}]']
        shapes += [f'[{{"role": "user", "content": {value}}}]', f'[{{"role": {value}, "content": "<video>"}}]']
        shapes += [
            f'[{{"role": "user", "content": [{value}]}}]',
            f'{{"ground_truth": {value}}}',
            f'{{"index": {value}}}',
        ]
        texts[name] = draw.choice(shapes)
    return "{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}"


def good_row(path: str, number: int) -> str:
    prompt = {"role": "user", "content": f"<video>How many, {number}?"}
    response = {"role": "assistant", "content": GOOD["output"]}
    columns = {"prompt": [prompt], "messages": [prompt, response], "videos": [{"video": path}]}
    columns |= {"problem_type": "numerical", "reward_model": {"ground_truth": "3"}}
    return json.dumps({**columns, "extra_info": {"index": number, "question": "How many?"}})


def row_lines(seed: int, count: int, path: str) -> Iterator[str]:
    """Hostile rows, each behind two good ones, whose types are those of most rows."""
    draw = random.Random(seed)
    for number in range(count):
        yield good_row(path, 2 * number)
        yield hostile_row(draw, path)
        yield good_row(path, 2 * number + 1)
