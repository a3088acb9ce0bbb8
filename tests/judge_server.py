# SPDX-License-Identifier: Apache-2.0
"""A judge behind real HTTP: a separate server process with OpenAI's chat completions API that fails on command.

    python tests/judge_server.py [--port 0] [--journal FILE]     prints {"port": N} once it listens

A request whose message holds frames is answered as a vision-language model would, see `vision_answer`, also if it asks
for a verdict.

A test takes the fixture `judge_server`, or `make_judge_server()` for each of several, and gets a `JudgeServer`:

    server.base_url                 "http://127.0.0.1:N/v1"
    server.control(latency=0.1)     see below; every call starts from the defaults
    server.calls()                  a `Call` for each request so far, in order of arrival
    server.kill(); server.start()   die, and come back on the same port with the same control
    sha(prompt)                     how a `Call` names its prompt

What is served: GET /v1/models, POST /v1/chat/completions, and POST /control with the JSON object that `control` sends:

    latency, jitter     seconds before each reply, and a share of them [0, jitter) on top, drawn from the prompt
    models              the names it knows, ["judge"]; another one gets a 404, as vLLM gives it
    api_key             null, or the only key that gets no 401
    yes_when            null, or a regular expression: Yes when it is found in the observation. By default Yes when the
                        observation states the correct answer's words (an option's text for its letter).
    sequence            faults of the next requests in order of arrival, "ok" for none; then the rest applies
    rules               [{"contains": "a text in the observation", "fault": …}]: the first that fits is what happens
    shares              {fault: share}: drawn from `seed`, the prompt and its attempt, so that no order matters
    slow, retry_after   seconds that `slow` takes longer; the Retry-After header of 429 and 503, null for none
    refuses             fields of the request that get a 400, as servers without structured outputs or log-probabilities
                        give it
    doubt               P(the other word) in the log-probabilities, [0, 1]
    unconstrained       the one token of a reply to a judge's prompt, unless the request constrains it

A request with `max_tokens` 1 is answered with one token, Yes or No by the same rule. If it asks for log-probabilities
it gets those of the two words.

Faults: `slow`; `hang` (until the client goes); `drop` (connection closed without a byte); `cut` (closed in the middle
of the body); `not_http` (bytes that are no HTTP); `junk` (200, no JSON); `truncated` (200, half of the JSON); `html`
(200, a page of HTML); `empty_choices`; `null_content`; `no_judgement` and `contradiction` (fine HTTP, no verdict in
it); and any status as digits, "429", "500", "401". What came and how it ended is written to the journal at once: a kill
loses nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vision_answer
from aiohttp import web

REFUSALS = {  # in the words of vLLM 0.32
    "media_io_kwargs": "Per-request media_io_kwargs are disabled by default because they can change multimodal media "
    "loading resource usage. Start the server with --trust-request-mm-kwargs only when clients are trusted.",
}
DEFAULTS: dict[str, Any] = {
    "latency": 0.0,
    "jitter": 0.0,
    "models": ["judge"],
    "api_key": None,
    "yes_when": None,
    "sequence": [],
    "rules": [],
    "shares": {},
    "seed": 0,
    "slow": 0.5,
    "retry_after": None,
    "refuses": [],
    "doubt": 0.1,
    "unconstrained": None,
}
VERDICT_FAULTS = {
    "null_content": None,
    "no_judgement": "I cannot tell.",
    "contradiction": "<judgement>Yes</judgement> but then <judgement>No</judgement>",
}
FAULTS = {"ok", "slow", "hang", "drop", "cut", "not_http", "junk", "truncated", "html", "empty_choices"}
FAULTS |= set(VERDICT_FAULTS)


def sha(prompt: str) -> str:
    """Return the journal's name of a prompt, which does not depend on its nonce."""
    if nonce := re.search(r"^=== OBSERVATION (\w+) ===$", prompt, re.MULTILINE):
        prompt = prompt.replace(nonce[1], "")
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def section(prompt: str, name: str) -> str:
    """Return the text between a section's markers in the judge's prompt, or the whole prompt without markers."""
    found = re.search(rf"=== {name}(?: \w+)? ===\n(.*)\n=== END OF {name}(?: \w+)? ===", prompt, re.DOTALL)
    return found[1] if found else prompt


def verdict(prompt: str, yes_when: str | None) -> str:
    """The server's rule: see `yes_when` above."""
    observation = section(prompt, "OBSERVATION")
    if yes_when is not None:
        return "Yes" if re.search(yes_when, observation) else "No"
    answer = section(prompt, "CORRECT ANSWER").strip()
    option = re.search(rf"^{re.escape(answer)}[.):]\s*(.+)$", section(prompt, "QUESTION"), re.MULTILINE)
    wanted, words = _words(option[1] if option else answer), _words(observation)
    return "Yes" if f" {wanted} " in f" {words} " else "No"


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


class Server:
    """Answers requests by the script that `/control` has set."""

    def __init__(self, journal: Path | None) -> None:
        self.script = dict(DEFAULTS)
        self.journal = journal.open("ab", buffering=0) if journal else None
        self.attempts: Counter[str] = Counter()
        self.number = 0

    def log(self, **event: Any) -> None:
        if self.journal:
            self.journal.write(json.dumps({"time": time.monotonic(), **event}).encode() + b"\n")

    async def control(self, request):
        script = await request.json()
        used = {*script.get("sequence", []), *script.get("shares", {}), *(r["fault"] for r in script.get("rules", []))}
        unknown = [*(set(script) - set(DEFAULTS)), *(f for f in used if f not in FAULTS and not f.isdigit())]
        if unknown:
            return web.json_response({"unknown": unknown}, status=400)
        self.script = {**DEFAULTS, **script}
        self.script["sequence"] = list(reversed(self.script["sequence"]))
        self.attempts.clear()
        return web.json_response({})

    async def models(self, _request):
        data = [{"id": name, "object": "model", "owned_by": "tests"} for name in self.script["models"]]
        return web.json_response({"object": "list", "data": data})

    async def complete(self, request):
        self.number += 1
        number, (body, prompt) = self.number, await self._read(request)
        name, outcome = sha(prompt), "gone"
        peer = request.transport.get_extra_info("peername")[1] if request.transport else 0
        self.log(id=number, prompt=name, peer=peer)
        fault = self._fault(name, prompt)
        try:
            response = await self._reply(request, body, prompt, fault)
            outcome = fault if response.status == 200 else str(response.status)
            return response
        finally:  # also when the client has gone, which cancels this
            self.log(id=number, outcome=outcome)

    async def _read(self, request) -> tuple[dict[str, Any], str]:
        """A request's body, and its text."""
        body = await request.json()
        content = body["messages"][-1]["content"]
        if isinstance(content, str):
            return body, content
        return body, "".join(part["text"] for part in content if part["type"] == "text")

    def answer(self, body: dict[str, Any], prompt: str) -> str:
        """Return the model's reply: a judge's verdict, or a description if a request with media asks for no verdict."""
        if not isinstance(body["messages"][-1]["content"], str) and "=== OBSERVATION" not in prompt:
            return vision_answer.respond(body, prompt)
        word = self.word(body, prompt)
        if body.get("max_tokens") == 1:
            free = None if "structured_outputs" in body else self.script["unconstrained"]
            return free or word
        return f"As asked.\n<judgement>{word}</judgement>"

    def word(self, body: dict[str, Any], prompt: str) -> str:
        """Return the verdict on an observation; one that comes with frames is compared with them."""
        if isinstance(body["messages"][-1]["content"], str):
            return verdict(prompt, self.script["yes_when"])
        return vision_answer.verdict(body, section(prompt, "OBSERVATION"))

    def _fault(self, name: str, prompt: str) -> str:
        script = self.script
        attempt = self.attempts[name]
        self.attempts[name] += 1
        if script["sequence"]:
            return script["sequence"].pop()
        observation = section(prompt, "OBSERVATION")
        for rule in script["rules"]:
            if rule["contains"] in observation:
                return rule["fault"]
        draw = random.Random(f"{script['seed']} {name} {attempt}").random()
        for fault, share in script["shares"].items():
            draw -= share
            if draw < 0:
                return fault
        return "ok"

    async def _reply(self, request, body: dict[str, Any], prompt: str, fault: str):
        script = self.script
        if script["api_key"] and request.headers.get("Authorization") != f"Bearer {script['api_key']}":
            return _error(401, "Incorrect API key provided")
        if body.get("model") not in script["models"]:
            return _error(404, f"The model `{body.get('model')}` does not exist.")
        if refused := [field for field in script["refuses"] if field in body]:
            return _error(400, REFUSALS.get(refused[0], f"Unrecognized request argument supplied: {refused[0]}"))
        wait = script["latency"] + script["jitter"] * random.Random(prompt).random()
        wait += script["slow"] if fault == "slow" else 0
        if fault == "hang":
            wait = 3600.0
        if wait:
            await asyncio.sleep(wait)
        if fault.isdigit():
            return _error(int(fault), "as told", script["retry_after"])
        content = VERDICT_FAULTS[fault] if fault in VERDICT_FAULTS else self.answer(body, prompt)
        completion = _completion(body["model"], prompt, content, fault == "empty_choices")
        if body.get("logprobs") and completion["choices"]:
            word = self.word(body, prompt)
            completion["choices"][0]["logprobs"] = _logprobs(content, word, script["doubt"])
        message = json.dumps(completion)
        if fault in ("drop", "cut", "not_http"):
            if fault == "cut":
                request.transport.write(_head(len(message)) + message.encode()[: len(message) // 2])
            elif fault == "not_http":
                request.transport.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            await asyncio.sleep(0)
            (request.transport.close if fault != "drop" else request.transport.abort)()
            return web.Response()
        if fault == "html":
            return web.Response(text="<html><body>Welcome to the gateway</body></html>", content_type="text/html")
        text = {"junk": "%&/ no JSON", "truncated": message[: len(message) // 2]}.get(fault, message)
        return web.Response(text=text, content_type="application/json")


def _head(length: int) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()


def _error(status: int, message: str, retry_after: Any = None):
    headers = {"Retry-After": str(retry_after)} if status in (429, 503) and retry_after is not None else None
    body = {"error": {"message": message, "type": "error", "param": None, "code": status}}
    return web.json_response(body, status=status, headers=headers)


def _completion(model: str, prompt: str, content: str | None, empty: bool) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    spent, made = len(prompt.split()), len((content or "").split())
    return {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [] if empty else [choice],
        "usage": {"prompt_tokens": spent, "completion_tokens": made, "total_tokens": spent + made},
    }


def _logprobs(content: str | None, word: str, doubt: float) -> dict[str, Any]:
    """Log-probabilities of the first token: those of the two words, and of the token itself if it is another one."""
    shares = {word: 1 - doubt, {"Yes": "No", "No": "Yes"}[word]: doubt}
    if content not in shares:
        shares = {content or "": 0.5, **{token: share / 2 for token, share in shares.items()}}
    top = [{"token": token, "logprob": math.log(share) if share else -9999.0} for token, share in shares.items()]
    return {"content": [{**top[0], "top_logprobs": top}]}


async def serve(port: int, journal: Path | None) -> None:
    """Listen until the process is ended."""
    server = Server(journal)
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/control", server.control)
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/chat/completions", server.complete)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, keepalive_timeout=60)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024, reuse_address=True)
    await site.start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.Event().wait()


@dataclass(frozen=True)
class Call:
    """One request as the server saw it.

    Args:
        prompt: `sha` of its last message.
        outcome: the fault, "ok", a status as digits, or "gone" when the client left or the server died first.
        peer: the client's port: as many connections as there are ports.
        start, end: seconds on the server's clock; `end` is infinite when the server died.
    """

    prompt: str
    outcome: str
    peer: int
    start: float
    end: float


class JudgeServer:
    """A test's handle on the server."""

    def __init__(self, journal: Path) -> None:
        self.journal, self.port, self.script = journal, 0, {}
        self.process: subprocess.Popen | None = None
        self.start()

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes."""
        return f"{self.url}/v1"

    def start(self) -> None:
        """Start, or restart on the same port with the same script."""
        assert self.process is None, "it runs: kill it first"
        command = [sys.executable, __file__, "--port", str(self.port), "--journal", str(self.journal), "--tied"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.port = json.loads(self.process.stdout.readline())["port"]
        if self.script:
            self.control(**self.script)

    def kill(self) -> None:
        """Kill the server together with the requests in flight."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.communicate()
            self.process = None

    def control(self, **script: Any) -> None:
        """Set the script, see the module's docstring."""
        body = json.dumps(script).encode()
        call = urllib.request.Request(f"{self.url}/control", body, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(call, timeout=30).read()
        except urllib.error.HTTPError as error:
            raise ValueError(f"the test server does not take {script}: {error.read().decode()}") from None
        self.script = script

    def calls(self) -> list[Call]:
        """Every request since `reset`, in order of arrival."""
        begun: dict[Any, dict[str, Any]] = {}
        lives = 0
        for line in self.journal.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # the last line of a killed server may be half a line
                event = json.loads(line)
                lives += event["id"] == 1 and "prompt" in event
                begun.setdefault((lives, event["id"]), {"outcome": "gone", "end": float("inf")}).update(
                    event if "prompt" in event else {"outcome": event["outcome"], "end": event["time"]}
                )
        return [
            Call(c["prompt"], c["outcome"], c["peer"], c["time"], c["end"]) for c in begun.values() if "prompt" in c
        ]

    def reset(self) -> None:
        """Restore the defaults and empty the journal."""
        if self.process is None or self.process.poll() is not None:
            self.kill()
            self.start()
        self.control()
        self.journal.write_bytes(b"")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--tied", action="store_true", help="end with the process that started it")
    arguments = parser.parse_args()
    if arguments.tied:
        threading.Thread(target=lambda: os._exit(len(sys.stdin.read())), daemon=True).start()
    asyncio.run(serve(arguments.port, arguments.journal))


if __name__ == "__main__":
    main()
