# SPDX-License-Identifier: Apache-2.0
"""The response template: a table of malformed responses, and linear time on hostile text."""

import json
import random
import subprocess
import sys

import pytest
from paths import TABLES

from verl_p2r.template import block_spans, parse_response, perception_end

CASES = json.loads((TABLES / "template.json").read_text(encoding="utf-8"))
PIECES = [
    "<observation>",
    "</observation>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    " ",
    "\n",
    "a",
    "<",
    "</",
    "é",
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_each_template_case_parses_as_expected(case):
    parsed = parse_response(case["text"])
    for field in ("observation", "think", "answer", "perception_well_formed", "reasoning_well_formed"):
        assert getattr(parsed, field) == case[field], field
    assert case["text"][: perception_end(case["text"])] == case["perception_region"]


def tokens_of(text):
    """Split into tags and single characters by hand: the reference uses no regular expression."""
    tags, position = [], 0
    while position < len(text):
        tag = next((piece for piece in PIECES[:6] if text.startswith(piece, position)), text[position])
        tags.append(tag)
        position += len(tag)
    return tags


def follows(text, names):
    """Walk over tags and characters: white space, then for each name one non-empty block with no tag inside."""
    tokens = [token for token in tokens_of(text) if token.strip()]
    for name in names:
        if not tokens or tokens.pop(0) != f"<{name}>" or not tokens or len(tokens[0]) > 1:
            return False
        while tokens and len(tokens[0]) == 1:
            tokens.pop(0)
        if not tokens or tokens.pop(0) != f"</{name}>":
            return False
    return not tokens


def test_well_formedness_matches_hand_written_parser():
    generator = random.Random(0)
    well_formed = 0
    template = ["<observation>", "a", "</observation>", "<think>", "a", "</think>", "<answer>", "a", "</answer>"]
    for _ in range(5000):
        # Half the texts are the template with a few pieces changed, so that both outcomes are common.
        pieces = list(template) if generator.random() < 0.5 else generator.choices(PIECES, k=generator.randint(0, 12))
        for _ in range(generator.randint(0, 2)):
            pieces.insert(generator.randint(0, len(pieces)), generator.choice(PIECES))
        text = "".join(pieces)
        parsed, end = parse_response(text), perception_end(text)
        assert parsed.perception_well_formed == follows(text[:end], ["observation"]), text
        assert parsed.reasoning_well_formed == follows(text[end:], ["think", "answer"]), text
        well_formed += parsed.perception_well_formed and parsed.reasoning_well_formed
    assert 200 < well_formed < 4000


INVISIBLE = [
    "\u200b",
    "\u200d\u2060",
    "\u00ad",
    "\ufeff",
    "\u3164",
    "\u115f\u1160",
    "\uffa0",
    "\u2800",
    "\u202e\u202c",
    "\U000e0041",
]


@pytest.mark.parametrize("nothing", [*INVISIBLE, " \u200b\n", "\u200b" * 400])
@pytest.mark.parametrize("tag", ["observation", "think", "answer"])
def test_block_without_visible_text_is_not_well_formed(nothing, tag):
    texts = {"observation": "o", "think": "t", "answer": "a"}
    for text, whole in ((nothing, False), (f"{nothing}x{nothing}", True)):
        parsed = parse_response("".join(f"<{t}>{text if t == tag else texts[t]}</{t}>" for t in texts))
        assert (parsed.perception_well_formed if tag == "observation" else parsed.reasoning_well_formed) is whole
        assert parsed.perception_well_formed or parsed.reasoning_well_formed  # the other process keeps its form


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_block_spans_locate_block_texts(case):
    texts = {tag: case["text"][start:stop].strip() for tag, (start, stop) in block_spans(case["text"]).items()}
    assert texts == {tag: case[tag] for tag in ("observation", "think", "answer") if case[tag] is not None}


HOSTILE = """
from verl_p2r.template import parse_response
n = 1_000_000
floods = ["<observation>", "</observation>", "<think>", "</think>", "<answer>", "</answer>"]
floods += ["<", "</", " ", "\\n<", "a", "\\u200b", "\\u3164 "]
floods += ["<think>a</think> ", "</think>" + " " * 1000 + "<answer>", "<answer>b</answer> ", "<observation> <"]
good = "<observation>a</observation><think>b</think>"
for flood in floods:
    flood = flood * (n // len(flood))
    for text in (flood, "<observation>" + flood, "<observation>a</observation>" + flood, good + flood, flood + good,
                 good + "<answer>" + flood, good + "<answer>c</answer>" + flood + "x"):
        parse_response(text)
"""


def test_a_megabyte_of_hostile_text_is_read_in_linear_time():
    # Linear code takes seconds; quadratic code would take hours for a single text, so the limit does not measure speed.
    subprocess.run([sys.executable, "-c", HOSTILE], check=True, timeout=300)
