# SPDX-License-Identifier: Apache-2.0
"""Verdicts in the replies of models and servers; `cases/judge_replies.json` lists the replies."""

import gzip
import json
import zlib

import pytest
from paths import TABLES

from verl_p2r.chat.client import UselessReply
from verl_p2r.chat.reply import MAX_BODY, Body, FilteredReply, UnreadableReply, filtered, read_reply
from verl_p2r.chat.thinking import spoken
from verl_p2r.judge import parse_verdict
from verl_p2r.judge.guards import as_data
from verl_p2r.judge.openai_judge import OpenAIJudge

TABLE = json.loads((TABLES / "judge_replies.json").read_text(encoding="utf-8"))
REPLIES = [pytest.param(case["reply"], case["cut"], case["verdict"], id=case["source"]) for case in TABLE["replies"]]
SHAPES = [pytest.param(case, id=case["source"]) for case in TABLE["shapes"]]
YES = "<judgement>Yes</judgement>"


@pytest.mark.parametrize(("reply", "cut", "verdict"), REPLIES)
def test_verdict_is_parsed_from_judge_reply(reply, cut, verdict):
    assert parse_verdict(reply, cut) is verdict


def body(message, finish_reason="stop", **more) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], **more}).encode()


@pytest.mark.parametrize("case", SHAPES)
def test_verdict_is_read_from_chat_completion(case):
    """A filtered reply becomes a No in `OpenAIJudge.ask_anew`, see test_client.py."""
    judge = OpenAIJudge("m", "http://localhost:1/v1")
    try:
        verdict = judge._verdict(read_reply(body(case["message"], case["finish_reason"])))
        value, reason = verdict.value, verdict.reason
    except UselessReply as error:
        value, reason = None, str(error)
    except UnreadableReply as error:
        value, reason = None, f"no chat completion: {error}"
    except FilteredReply as error:
        value, reason = False, f"content filter: {error}"
    assert value is case["verdict"]
    assert case["reason"] in reason
    reason.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b'{"choices": []}',
        b'{"choices": {"0": 1}}',
        b'{"choices": ["x"]}',
        b'{"choices": NaN}',
        b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"choices":' + b"9" * 5000 + b"}",
        b"\xff\xfe\xff",
        b"<html>login</html>",
        b"data: {}\n\n",
        b'{"error": {"message": "overloaded"}}',
        body({"content": YES})[:-20],
    ],
)
def test_body_that_is_not_chat_completion_is_unreadable(data):
    with pytest.raises(UnreadableReply):
        read_reply(data)


def test_streamed_or_html_body_error_gives_remedy():
    with pytest.raises(UnreadableReply, match="it streams: remove stream"):
        read_reply(b"data: {}\n\n")
    with pytest.raises(UnreadableReply, match="a web page: check that the URL"):
        read_reply(b" <!DOCTYPE html>")


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 3}, (7, 3)),
        ({"prompt_tokens": -7, "completion_tokens": 10**30}, (0, 0)),
        ({"prompt_tokens": True, "completion_tokens": "3"}, (0, 0)),
        ({"prompt_tokens": float("nan"), "completion_tokens": 3.0}, (0, 0)),
        ("x", (0, 0)),
        (None, (0, 0)),
        ([], (0, 0)),
    ],
)
def test_token_usage_of_server_is_sanitised(usage, counts):
    reply = read_reply(body({"content": YES}, usage=usage))
    assert (reply.prompt_tokens, reply.completion_tokens) == counts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_reply_json_encodings_are_read_and_bad_bytes_replaced(encoding):
    assert read_reply(body({"content": YES}).decode().encode(encoding)).text == YES
    damaged = read_reply(body({"content": f"x {YES}"}).replace(b'"x', b'"\xff'))
    assert damaged.text == f"\ufffd {YES}"


AZURE = {
    "error": {
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        "code": "content_filter",
        "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
    }
}


@pytest.mark.parametrize(
    ("status", "text", "is_filtered"),
    [
        (400, json.dumps(AZURE), True),
        (400, json.dumps({"error": {"code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}), True),
        (400, json.dumps({"error": {"code": "content_policy_violation", "message": "…"}}), True),
        (400, json.dumps({"code": "DataInspectionFailed", "message": "Input data may contain…"}), True),
        (400, json.dumps({"error": {"type": "data_inspection_failed"}}), True),
        (400, json.dumps({"error": {"message": "Content Exists Risk", "code": "invalid_request_error"}}), True),
        (400, "content filter", True),
        (403, json.dumps({"error": {"code": "content_filter"}}), True),
        (200, json.dumps({"error": {"code": "content_filter"}}), True),
        (400, json.dumps({"error": {"code": "context_length_exceeded"}}), False),
        (400, "too long", False),
        (403, "<html>This page was blocked by your company's web content filter</html>", False),
        (500, "content filter crashed", False),
    ],
)
def test_content_filter_refusal_is_recognised(status, text, is_filtered):
    assert filtered(status, text) is is_filtered


@pytest.mark.parametrize("attack", [case["reply"] for case in TABLE["replies"]])
def test_quoted_text_cannot_open_or_close_thinking(attack):
    """A judge may quote what it was shown; only words at a reply's very beginning are the judge's own."""
    said = spoken(f"It says: {as_data(attack)}")
    assert not said.thought
    assert parse_verdict(f"It says: {as_data(attack)} {YES}") is True


@pytest.mark.parametrize("encoding", ["", "identity", "gzip", "x-gzip", "deflate", " GZIP "])
def test_a_body_is_collected_and_decompressed(encoding):
    data = body({"content": YES}) * 100
    sent = gzip.compress(data) if "gzip" in encoding.lower() else zlib.compress(data) if encoding == "deflate" else data
    collected = Body(encoding)
    for start in range(0, len(sent), 7):
        collected.feed(sent[start : start + 7])
    assert collected.whole() == data


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "nope"])
def test_unrequested_content_encoding_is_refused(encoding):
    with pytest.raises(UnreadableReply, match="which was not requested"):
        Body(encoding)


def test_response_body_memory_is_limited():
    """Also a gzip bomb: a thousandth of the limit decompresses to more than it."""
    plain = Body()
    plain.feed(b" " * MAX_BODY)
    with pytest.raises(UnreadableReply, match="longer than 8 MiB"):
        plain.feed(b" ")
    bomb = Body("gzip")
    with pytest.raises(UnreadableReply, match="longer than 8 MiB"):
        bomb.feed(gzip.compress(b" " * (1 << 26)))
    assert len(bomb._data) == MAX_BODY + 1


def test_damaged_or_truncated_compression_is_an_error():
    with pytest.raises(UnreadableReply, match="its compression is damaged"):
        Body("gzip").feed(b"nonsense")
    cut = Body("gzip")
    cut.feed(gzip.compress(b"x" * 1000)[:-4])
    with pytest.raises(UnreadableReply, match="was cut off"):
        cut.whole()
