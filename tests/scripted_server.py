# SPDX-License-Identifier: Apache-2.0
"""An HTTP server that sends exactly the bytes a test gives, and records its requests.

async with ScriptedServer(lambda head, body: http(completion("…"))) as server:
    server.base_url, server.heads, server.bodies
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any


def http(body: Any = b"", status: str = "200 OK", **headers: str) -> bytes:
    """Build a response; a body that is not bytes is sent as JSON. Underscores in header names become hyphens."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + data


def completion(content: Any, finish_reason: Any = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion's JSON."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    return {"choices": [{**choice, "finish_reason": finish_reason}]}


class ScriptedServer:
    """Answers each request with the result of `reply(head, body)`: bytes, or an awaitable of them."""

    def __init__(self, reply: Callable[[str, bytes], bytes | Awaitable[bytes]]) -> None:
        self.reply = reply
        self.heads: list[str] = []
        self.bodies: list[bytes] = []

    async def __aenter__(self) -> "ScriptedServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = [line for line in head.lower().split("\r\n") if line.startswith("content-length:")]
                body = await reader.readexactly(int(length[0].split(":")[1])) if length else b""
                self.heads.append(head)
                self.bodies.append(body)
                said = self.reply(head, body)
                writer.write(said if isinstance(said, bytes) else await said)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
