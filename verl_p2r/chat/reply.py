# SPDX-License-Identifier: Apache-2.0
"""What comes back from a chat completions server: bodies of any size and shape, read into a `Reply` or refused."""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_BODY = 8 << 20
"""Bytes of a body, decompressed: a long chain of thought takes a tenth of that [ours]."""

THINKING_REMEDY = "raise max_tokens, start the server with its model's reasoning parser, or turn thinking off"

_MOST_TOKENS = 1 << 40  # a larger count is nonsense, and does not fit where tokens are summed
_CUT = {"length", "maxtokens", "maxoutputtokens", "modellength"}
_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks")
_THOUGHT_PARTS = {"thinking", "reasoning", "reasoning_content", "redacted_thinking", "summary_text", "thought"}

# Codes of OpenAI and Azure, Alibaba, Anthropic, Gemini, GLM, Bedrock, and gateways before them.
_FILTER_CODES = (
    "content_?filter(?:ed)?|ResponsibleAIPolicyViolation|content_policy_violation|data_?inspection_?failed|"
    "sensitive|safety|prohibited_content|blocklist|recitation|refusal|guardrail_intervened|moderation_blocked"
)
_FILTER_FINISH = re.compile(rf"(?:{_FILTER_CODES})(?:\W.*)?", re.IGNORECASE)
_FILTER_FIELD = re.compile(rf'"(?:code|type|reason|finish_reason)"\s*:\s*"(?:{_FILTER_CODES})"', re.IGNORECASE)
_FILTER_WORDS = re.compile(r"content[ _-]?filter|content management policy|content exists risk", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """A chat completion.

    Args:
        text: what the model wrote, as Unicode that can be encoded; empty when it wrote nothing but thoughts.
        cut: whether it was cut off by `max_tokens`.
        retries: how often it was asked again.
        prompt_tokens, completion_tokens: as the server counts; 0 when it does not say, or says nonsense.
        thought: whether the server sent the model's reasoning in a field of its own.
    """

    text: str
    cut: bool = False
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    thought: bool = False

    @property
    def shortfall(self) -> str:
        """Why a text may lack what was asked for, with the remedy, in brackets after a blank; else empty.

        >>> Reply("Let me", cut=True).shortfall
        ' (cut off by max_tokens: raise it)'
        """
        if self.thought and not self.text.strip():
            why = "cut off by max_tokens while it was thinking" if self.cut else "the server sent only reasoning"
            return f" ({why}: {THINKING_REMEDY})"
        return " (cut off by max_tokens: raise it)" if self.cut else ""


class UnreadableReply(Exception):
    """A body that is not a chat completion. The message says why, and perhaps a remedy."""


class FilteredReply(Exception):
    """A content filter has refused the request or the completion."""


class Body:
    """Collects a body, decompresses it, and refuses one that is too long before it takes memory.

    Args:
        encoding: the header Content-Encoding, or an empty text.

    Raises:
        UnreadableReply: from every method, for a body that is too long or is not what its encoding says.
    """

    def __init__(self, encoding: str = "") -> None:
        self._data = bytearray()
        self._inflater: Any = None
        name = encoding.strip().lower()
        if name in ("gzip", "x-gzip", "deflate"):
            self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # tells gzip from zlib by itself
        elif name not in ("", "identity"):
            raise UnreadableReply(f"it is encoded as {encoding[:50]!r}, which was not asked for")

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        if self._inflater is not None:
            try:
                chunk = self._inflater.decompress(chunk, MAX_BODY + 1 - len(self._data))
            except zlib.error as error:
                raise UnreadableReply(f"its compression is damaged: {error}") from None
        self._data += chunk
        if len(self._data) > MAX_BODY:
            raise UnreadableReply(f"its body is longer than {MAX_BODY >> 20} MiB")

    def whole(self) -> bytes:
        """All bytes, when the body has ended."""
        if self._inflater is not None and not self._inflater.eof:
            raise UnreadableReply("its compressed body was cut off")
        return bytes(self._data)


def read_reply(body: bytes, retries: int = 0) -> Reply:
    """Find the model's words in what the server sent.

    Args:
        body: the body of a response with status 200.
        retries: for `Reply.retries`.

    Raises:
        UnreadableReply: it is not a chat completion.
        FilteredReply: the completion was stopped or refused by a content filter.
    """
    try:
        completion = json.loads(body.decode(json.detect_encoding(body), "replace"))
        choice = completion["choices"][0]
        message = choice["message"]
        finish = str(choice.get("finish_reason"))
        refusal = message.get("refusal")
        text, thought = _text_of(message.get("content"))
        thought = thought or any(message.get(field) for field in _THOUGHTS)
        usage = completion.get("usage")
    except (AttributeError, TypeError, LookupError, ValueError, RecursionError):
        if filtered(200, body.decode(errors="replace")):
            raise FilteredReply("its error says so") from None
        raise UnreadableReply(_hint(body)) from None
    if _FILTER_FINISH.fullmatch(finish):
        raise FilteredReply(f"finish_reason {finish[:50]}")
    if isinstance(refusal, str) and refusal and not text.strip():
        raise FilteredReply(f"refusal: {refusal}")
    cut = finish.lower().replace("_", "") in _CUT
    return Reply(text, cut, retries, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"), thought)


def filtered(status: int, text: str) -> bool:
    """Tell whether an error is a content filter's refusal of what was asked.

    Plain words count only in a 400 or 422: a 403 that names a filter may be a firewall's, which refuses everything.

    >>> filtered(400, '{"error": {"code": "content_filter", "innererror": {}}}'), filtered(403, "Web content filter")
    (True, False)
    """
    if _FILTER_FIELD.search(text):
        return True
    return status in (400, 422) and _FILTER_WORDS.search(text) is not None


def encodable(text: str) -> str:
    """A text without lone surrogates, which no file and no database takes; pairs become their character.

    >>> encodable("red \\ud83d"), encodable("\\ud83d\\ude00") == "😀"
    ('red �', True)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _text_of(content: Any) -> tuple[str, bool]:
    """The text of a message's content, and whether it holds parts that are thoughts."""
    if content is None or isinstance(content, str):
        return encodable(content or ""), False
    texts, thought = [], False
    for part in [content] if isinstance(content, Mapping) else content:
        kind = "text" if isinstance(part, str) else part.get("type", "text")
        if kind in _THOUGHT_PARTS or (isinstance(part, Mapping) and part.get("thought") is True):
            thought = True
        elif kind in ("text", "output_text"):
            texts.append(part if isinstance(part, str) else part["text"])
    return encodable("".join(texts)), thought


def _count(usage: Any, field: str) -> int:
    number = usage.get(field) if isinstance(usage, dict) else None
    return number if type(number) is int and 0 <= number < _MOST_TOKENS else 0


def _hint(body: bytes) -> str:
    start = body[:200].lstrip().lower()
    if start.startswith(b"data:"):
        return "it streams: remove stream from extra_body"
    if start.startswith(b"<"):
        return "it is a web page: check that the URL is the API's, most often it ends in /v1"
    return ""
