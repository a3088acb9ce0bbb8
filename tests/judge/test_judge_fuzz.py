# SPDX-License-Identifier: Apache-2.0
"""Hostile replies of a judge's server, made at random: each call ends in the verdict that a slow reader gives it.

A reply is made of pieces whose meaning is known, so the reference reads pieces and not text.
"""

import asyncio
import gzip
import json
import random
import re
from collections import Counter
from dataclasses import dataclass

import pytest
from scripted_server import ScriptedServer, completion, http

from verl_p2r.chat import client as chat_client
from verl_p2r.judge import JudgeRequest
from verl_p2r.judge.openai_judge import OpenAIJudge

COUNT = 500
OPEN = ["<think>", "<thinking>", "<THINK>\n", "[THINK]", "◁think▷", "<seed:think>", "<|START_THINKING|>", "<thought>"]
OPEN += ["<|begin_of_thought|>", "<|channel|>analysis<|message|>", "<|channel>thought\n", "<reasoning>", "<|think|>"]
CLOSE = [
    "</think>",
    "</thinking>",
    "</THINK >",
    "[/THINK]",
    "◁/think▷",
    "</seed:think>",
    "<|END_THINKING|>",
    "</thought>",
]
CLOSE += ["<|end_of_thought|>", "<|channel|>final<|message|>", "<channel|>", "</reasoning>", "<|/think|>"]
FILLER = [
    "The ball is red. ",
    "\n\n",
    "It is stated",
    "😀",
    "Yes",
    "no ",
    "judgement: Yes ",
    "‹think›",
    "<b>x</b>",
    "\ud83d",
]
FILLER += [
    "&lt;judgement&gt;Yes&lt;/judgement&gt;",
    "= " * 50,
    "\0",
    "\u2028",
    "[1] ",
    "analysis ",
    "{}",
    "x" * 3000,
    "<",
    "]",
]
DRESS = ["{}", "**{}**", " {} ", '"{}"', "{}.", "`{}`", "\n{}\n", "“{}”", "__{}__!", "({})"]
BROKEN = ["<judgement>", "</judgement>", "<judgement>Maybe</judgement>", "<judgement></judgement>"]
BROKEN += ["<judgement>Yes or No</judgement>", "<judgement><b>Yes</b></judgement>", "<judgement>yes\u200b</judgement>"]
KINDS = [("say", 8), ("Yes", 3), ("No", 3), ("open", 2), ("close", 2), ("broken", 1)]


@dataclass(frozen=True)
class Piece:
    """A part of a reply, and what it is: say, Yes, No, open, close or broken."""

    kind: str
    text: str


def piece(rng: random.Random, usual: str) -> Piece:
    kind = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])[0]
    if kind in ("Yes", "No"):
        kind = usual if rng.random() < 0.8 else kind
        name = rng.choice(["judgement", "judgment", "JUDGEMENT", " judgement "])
        word = rng.choice(DRESS).format(rng.choice([kind, kind.lower(), kind.upper()]))
        return Piece(kind, f"<{name}>{word}</{name}>")
    return Piece(kind, rng.choice({"say": FILLER, "open": OPEN, "close": CLOSE, "broken": BROKEN}[kind]))


def reference(pieces: list[Piece], cut: bool) -> bool | None:
    """Read the verdict piece by piece, checking for each piece whether it lies inside thinking."""
    marks = [(i, p.kind) for i, p in enumerate(pieces) if p.kind in ("open", "close")]
    said = []
    for i, p in enumerate(pieces):
        before = [kind for at, kind in marks if at < i]
        # A closing mark without an opening one marks everything before it as thinking.
        lone = [
            at for at, kind in marks if kind == "close" and ["close", *(k for a, k in marks if a < at)][-1] == "close"
        ]
        if p.kind not in ("open", "close") and before[-1:] != ["open"] and not any(at > i for at in lone):
            said.append(p)
    if any(p.kind == "broken" for p in said):
        return None
    verdicts = [p for p in said if p.kind in ("Yes", "No")]
    if len({p.kind for p in verdicts}) != 1:
        return None
    last = max(i for i, p in enumerate(said) if p.kind in ("Yes", "No"))
    if cut and not marks and any(re.search(r"[\w<>‹›😀\0=&;\ud83d\u2028]", p.text) for p in said[last + 1 :]):
        return None
    return verdicts[0].kind == "Yes"


@dataclass(frozen=True)
class Hostile:
    """What the server sends for one request, one after the other, and the verdict that this is."""

    replies: list[bytes]
    verdict: bool | None
    shape: str


def shaped(rng: random.Random, text: str, finish: str, verdict: bool | None) -> Hostile:
    """A text in one of the shapes that servers give it."""
    shape = rng.choice(
        ["text", "text", "parts", "texts", "one part", "thought part", "gzip", "field", "late", "filter"]
    )
    half = rng.randrange(len(text) + 1)
    content = {
        "parts": [{"type": "text", "text": text[:half]}, {"type": "text", "text": text[half:]}],
        "texts": [text[:half], text[half:]],
        "one part": {"type": "text", "text": text},
        "thought part": [
            {"type": "thinking", "thinking": [{"type": "text", "text": text}]},
            {"type": "text", "text": text},
        ],
    }.get(shape, text)
    more = {"reasoning_content": "<judgement>No</judgement>"} if shape == "field" else {}
    body = completion(content, "content_filter" if shape == "filter" else finish, **more)
    good = http(body)
    if shape == "gzip":
        good = http(gzip.compress(json.dumps(body).encode()), Content_Encoding="gzip")
    first = [rng.choice([http(b"", "503 x"), http(b"{", "200 OK"), http(b"", "429 x", Retry_After="0")])]
    return Hostile([*(first if shape == "late" else []), good], False if shape == "filter" else verdict, shape)


def hopeless(rng: random.Random) -> Hostile:
    """A broken reply never has a verdict."""
    body = rng.choice(
        [
            completion(None, "length", reasoning="<judgement>Yes</judgement>"),
            completion([]),
            completion(3),
            completion([{"type": "text"}]),
            {"choices": []},
            {"choices": None},
            [],
            None,
            {"error": {"message": "overloaded <judgement>Yes</judgement>"}},
            b"<html><judgement>Yes</judgement></html>",
            b'{"choices":' + b"[" * 100_000,
            b'{"choices":' + b"9" * 5000 + b"}",
            b" " * 100,
        ]
    )
    status = rng.choice(["200 OK", "200 OK", "200 OK", "404 x", "422 x", "307 x"])
    return Hostile([http(body, status)], None, "hopeless")


def hostile(rng: random.Random) -> Hostile:
    if rng.random() < 0.15:
        return hopeless(rng)
    usual = rng.choice(["Yes", "No"])  # most replies do not contradict themselves
    pieces = [piece(rng, usual) for _ in range(rng.randrange(1, 8))]
    finish = rng.choice(["stop", "stop", "length", "eos", None])
    text = "".join(p.text for p in pieces)
    return shaped(rng, text, finish, reference(pieces, finish == "length"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_judge_replies_get_expected_verdicts(seed, monkeypatch, tmp_path):
    monkeypatch.setattr(chat_client, "_BACKOFF_S", 0.0)
    rng = random.Random(seed)
    cases = [hostile(rng) for _ in range(COUNT)]
    asked = Counter()

    def reply(head: str, body: bytes) -> bytes:
        number = int(re.search(rb"ball number (\d+) rolls", body)[1])
        asked[number] += 1
        return cases[number].replies[min(asked[number], len(cases[number].replies)) - 1]

    async def main():
        async with ScriptedServer(reply) as server:
            judge = OpenAIJudge("m", server.base_url, deadline_s=300.0, cache_file=str(tmp_path / "v.sqlite"))
            requests = [JudgeRequest("Which?", "A", f"A ball number {i} rolls.", row=str(i)) for i in range(COUNT)]
            verdicts = await asyncio.gather(*map(judge.judge, requests))
            again = await asyncio.gather(
                *(judge.judge(r) for r, v in zip(requests, verdicts, strict=True) if v.value is not None)
            )
            await judge.aclose()
            return verdicts, again

    verdicts, again = asyncio.run(main())
    wrong = [
        (i, case.shape, case.verdict, v)
        for i, (case, v) in enumerate(zip(cases, verdicts, strict=True))
        if v.value is not case.verdict
    ]
    assert wrong == []
    assert {v.source for v in again} == {"cache"}
    assert [v.value for v in again] == [v.value for v in verdicts if v.value is not None]
    assert max(asked.values()) <= 4
    for verdict in verdicts:
        verdict.reason.encode()
        assert verdict.reason or verdict.value is not None
    assert min(Counter(case.verdict for case in cases).values()) >= 60  # each verdict, and none, is well represented
