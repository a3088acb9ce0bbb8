# SPDX-License-Identifier: Apache-2.0
"""A server whose replies are hostile: each request gets one by a draw from the seed and its own text."""

import gzip
import http.server
import json
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GOOD = {
    "generate": "<observation>A red ball.</observation><think>It is red.</think><answer>A</answer>",
    "judge": "As asked.\n<judgement>Yes</judgement>",
}
TEXTS = (
    "",
    " \n\t",
    "\ud83d",
    "a \udc80 b",
    "\0",
    "a\0b",
    "\ufeff",
    "\u202e\u2066",
    "<think>" * 200,
    "</think>",
    "<judgement>Yes</judgement><judgement>No</judgement>",
    "x" * 300_000,
    "\x1b[2J\x1b]0;title\x07",
    "{" * 1000,
    "null",
    "é" * 1000,
)


def message_of(draw: random.Random, good: str) -> Any:
    """What stands in the place of a message's content."""
    text = draw.choice(TEXTS)
    return draw.choice(
        (
            text,
            good + text,
            text + good,
            None,
            3,
            True,
            [],
            [{"type": "text", "text": good}],
            [{"type": "text", "text": None}],
            [None, 3],
            {"text": good},
        )
    )


def body_of(draw: random.Random, good: str) -> bytes:
    """A body: of a completion with an odd message, of another shape, damaged, or not of JSON at all."""
    completion: Any = {"choices": [{"message": {"role": "assistant", "content": message_of(draw, good)}}]}
    if draw.random() < 0.5:
        completion["choices"][0]["finish_reason"] = draw.choice(("stop", "length", None, 3, "content_filter"))
        completion["usage"] = draw.choice((None, 3, {"prompt_tokens": "3"}, {"prompt_tokens": 10**400}, {}))
    whole = json.dumps(completion).encode()
    return draw.choice(
        (
            *[whole] * 8,
            whole[: draw.randrange(len(whole))],
            b"",
            b"null",
            b"[]",
            b'"Yes"',
            b"{}",
            b'{"choices": []}',
            b'{"choices": {}}',
            b'{"choices": [null]}',
            b'{"choices": [{"message": null}]}',
            b'{"choices": [{"message": "Yes"}]}',
            b'{"choices":' + b"[" * 50_000,
            b'{"choices": ' + b"9" * 5000 + b"}",
            b"<html>busy</html>",
            b"data: {}\n\n",
            draw.randbytes(200),
            gzip.compress(whole),
            whole.replace(b"assistant", b"\xff\xfe"),
        )
    )


@contextmanager
def hostile_server(seed: int, step: str) -> Iterator[str]:
    """Serve; gives the base URL.

    Args:
        seed: seed of the draw.
        step: `generate` or `judge`, whose good replies are mixed in: to one of three records, and to values that are
            not records.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send(200, b'{"data": []}')

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
            text = content if isinstance(content, str) else content[-1]["text"]
            number = re.search(r"ball (\d+)", text)
            good = GOOD[step] if "wooden bench" not in text else "<judgement>No</judgement>"
            draw = random.Random(f"{seed} {number and number[1]}")
            if number is None or draw.random() < 1 / 3:
                self.send(200, json.dumps({"choices": [{"message": {"content": good}}]}).encode())
            elif draw.random() < 0.1:
                self.send(draw.choice((400, 413, 422)), draw.choice((b"content filter", b"", b"\xff", b"{")))
            else:
                self.send(200, body_of(draw, good))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
