# SPDX-License-Identifier: Apache-2.0
"""Reads the response of a chat completions server into a `Reply`, or rejects it."""

import contextlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_BODY = 8 << 20
"""The largest decompressed body, in bytes; a long chain of thought takes a tenth of it [ours]."""

THINKING_REMEDY = "raise max_tokens, start the server with its model's reasoning parser, or turn thinking off"

_MOST_TOKENS = 1 << 40  # a larger count is wrong, and sums of it would overflow
_CUT = {"length", "maxtokens", "maxoutputtokens", "modellength"}
_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks")
_THOUGHT_PARTS = {"thinking", "reasoning", "reasoning_content", "redacted_thinking", "summary_text", "thought"}

# Codes of OpenAI and Azure, Alibaba, Anthropic, Gemini, GLM, Bedrock, and of gateways in front of them.
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
        text: What the model wrote, as encodable Unicode; empty if it wrote only reasoning.
        cut: Whether `max_tokens` cut it off.
        retries: How often the request was repeated.
        prompt_tokens: Prompt tokens as the server counts them; 0 if it reports none or an impossible number.
        completion_tokens: Completion tokens, likewise.
        thought: Whether the server sent the model's reasoning in a separate field.
        top: The likeliest candidates for the first token with their log-probabilities; empty if the server gives none.
    """

    text: str
    cut: bool = False
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    thought: bool = False
    top: tuple[tuple[str, float], ...] = ()

    @property
    def shortfall(self) -> str:
        """Why the text may be incomplete, with the remedy, in parentheses after a space; empty if it is complete.

        >>> Reply("Let me", cut=True).shortfall
        ' (cut off by max_tokens: raise it)'
        """
        if self.thought and not self.text.strip():
            why = "cut off by max_tokens while it was thinking" if self.cut else "the server sent only reasoning"
            return f" ({why}: {THINKING_REMEDY})"
        return " (cut off by max_tokens: raise it)" if self.cut else ""


class UnreadableReply(Exception):
    """A body that is not a chat completion. The message gives the reason and, if known, a remedy."""


class FilteredReply(Exception):
    """A content filter refused the request or the completion."""


class Body:
    """Collects and decompresses a body, and rejects one that is too long before it fills memory.

    Args:
        encoding: The header Content-Encoding, or an empty text.

    Raises:
        UnreadableReply: Raised by every method, if the body is too long or does not match its encoding.
    """

    def __init__(self, encoding: str = "") -> None:
        self._data = bytearray()
        self._inflater: Any = None
        name = encoding.strip().lower()
        if name in ("gzip", "x-gzip", "deflate"):
            self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # detects gzip and zlib
        elif name not in ("", "identity"):
            raise UnreadableReply(f"it is encoded as {encoding[:50]!r}, which was not requested")

    def feed(self, chunk: bytes) -> None:
        """Add the next bytes."""
        if self._inflater is not None:
            try:
                chunk = self._inflater.decompress(chunk, MAX_BODY + 1 - len(self._data))
            except zlib.error as error:
                raise UnreadableReply(f"its compression is damaged: {error}") from None
        self._data += chunk
        if len(self._data) > MAX_BODY:
            raise UnreadableReply(f"its body is longer than {MAX_BODY >> 20} MiB")

    def whole(self) -> bytes:
        """Return the complete body."""
        if self._inflater is not None and not self._inflater.eof:
            raise UnreadableReply("its compressed body was cut off")
        return bytes(self._data)


def read_reply(body: bytes, retries: int = 0) -> Reply:
    """Read a chat completion.

    Args:
        body: The body of a response with status 200.
        retries: The value for `Reply.retries`.

    Raises:
        UnreadableReply: The body is not a chat completion.
        FilteredReply: A content filter stopped or refused the completion.
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
    tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    return Reply(text, cut, retries, *tokens, thought, _top(choice.get("logprobs")))


def filtered(status: int, text: str) -> bool:
    """Tell whether an error is a content filter's refusal of this request.

    Plain words count only with status 400 or 422, because a 403 that mentions a filter may come from a firewall that
    refuses every request.

    Args:
        status: The HTTP status.
        text: The whole body.

    >>> filtered(400, '{"error": {"code": "content_filter", "innererror": {}}}'), filtered(403, "Web content filter")
    (True, False)
    """
    if _FILTER_FIELD.search(text):
        return True
    return status in (400, 422) and _FILTER_WORDS.search(text) is not None


def encodable(text: str) -> str:
    """Remove lone surrogates, which files and databases reject; pairs become their character.

    >>> encodable("red \\ud83d"), encodable("\\ud83d\\ude00") == "😀"
    ('red �', True)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _text_of(content: Any) -> tuple[str, bool]:
    """Return the text of a message's content, and whether it contains reasoning parts."""
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


def _top(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """Return the candidates for the first token; malformed ones are left out, because the text may do without them."""
    with contextlib.suppress(AttributeError, TypeError, LookupError):
        first = logprobs["content"][0]
        pairs = [(one.get("token"), one.get("logprob")) for one in first.get("top_logprobs") or [first]]
        return tuple((t, float(p)) for t, p in pairs if isinstance(t, str) and type(p) in (int, float) and p == p)
    return ()


def _count(usage: Any, field: str) -> int:
    number = usage.get(field) if isinstance(usage, dict) else None
    return number if type(number) is int and 0 <= number < _MOST_TOKENS else 0


def _hint(body: bytes) -> str:
    start = body[:200].lstrip().lower()
    if start.startswith(b"data:"):
        return "it streams: remove stream from extra_body"
    if start.startswith(b"<"):
        return "it is a web page: check that the URL is the API's; it usually ends in /v1"
    return ""
