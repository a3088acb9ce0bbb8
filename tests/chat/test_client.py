# SPDX-License-Identifier: Apache-2.0
"""The client against misbehaving servers and proxies: no redirects, no leaked key, no pointless waiting."""

import asyncio
import base64
import json
import logging
import zlib
from urllib.parse import quote

import pytest
from scripted_server import ScriptedServer, completion, http

from verl_p2r.chat import client as chat_client
from verl_p2r.chat.client import ChatClient, Unanswered
from verl_p2r.chat.redaction import Redactor
from verl_p2r.judge import JudgeRequest
from verl_p2r.judge.openai_judge import OpenAIJudge

KEY = "sk-SECRET-0123456789abcdef+/="
REQUEST = JudgeRequest("Which?\nA. red\nB. blue", "A", "A red ball rolls.")
YES = "<judgement>Yes</judgement>"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A key, an account, no proxy, and no wait between attempts."""
    monkeypatch.setattr(chat_client, "_BACKOFF_S", 0.0)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in (("OPENAI_API_KEY", KEY), ("OPENAI_ORG_ID", "org-7"), ("OPENAI_PROJECT_ID", "proj-8")):
        monkeypatch.setenv(name, value)


async def judged(base_url: str, **kwargs):
    judge = OpenAIJudge("m", base_url, **{"timeout_s": 5.0, "connect_timeout_s": 5.0, "deadline_s": 20.0, **kwargs})
    try:
        return await judge.judge(REQUEST)
    finally:
        await judge.aclose()


def ask(reply, path="", **kwargs):
    """Return the verdict of a judge whose server always sends this reply, and the server."""

    async def main():
        async with ScriptedServer(lambda head, body: reply) as server:
            return await judged(server.base_url + path, **kwargs), server

    return asyncio.run(main())


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 x", "308 x"])
def test_a_redirect_is_an_error_that_names_its_target(status):
    async def main():
        async with ScriptedServer(lambda head, body: http(completion(YES))) as other:
            target = other.base_url.replace("//", "//me:hunter2pw@") + "/chat/completions?token=hunter2pw"
            async with ScriptedServer(lambda head, body: http(b"", status, Location=target)) as server:
                return await judged(server.base_url), server.heads, other

    verdict, heads, other = asyncio.run(main())
    assert verdict.value is None
    assert f"it redirects to {other.base_url}/chat/completions, which is not followed: set base_urls" in verdict.reason
    assert "hunter2pw" not in verdict.reason
    assert (len(heads), other.heads) == (1, [])


@pytest.mark.parametrize("location", ["", "http://[::1", "file:///etc/passwd", "\x01"])
def test_redirect_without_valid_target_is_an_error(location):
    verdict, server = ask(http(b"", "307 x", Location=location))
    assert verdict.value is None
    assert "which is not followed" in verdict.reason
    assert len(server.heads) == 1


FILTERED = {
    "error": {"code": "content_filter", "message": "hate", "innererror": {"code": "ResponsibleAIPolicyViolation"}}
}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (http(FILTERED, "400 Bad Request"), '"message": "hate"'),
        (http(b"content filter", "400 Bad Request"), "content filter"),
        (http(FILTERED), "its error says so"),
        (http(completion(YES, "content_filter")), "finish_reason content_filter"),
        (http(completion(None, "stop", refusal="I cannot.")), "refusal: I cannot."),
    ],
)
def test_content_filter_refusal_becomes_no_with_reason(reply, said, caplog):
    with caplog.at_level(logging.ERROR):
        verdict, server = ask(reply)
    assert (verdict.value, verdict.source) == (False, "judge")
    assert f"refused by the content filter of {server.base_url}: " in verdict.reason
    assert said in verdict.reason
    assert len(server.heads) == 1
    assert not caplog.records


def test_filtered_generation_is_not_retried():
    async def main():
        async with ScriptedServer(lambda head, body: http(completion("half a", "content_filter"))) as server:
            client = ChatClient("m", server.base_url)
            with pytest.raises(Unanswered) as caught:
                await client.complete("x", lambda reply: reply)
            await client.aclose()
            return caught.value

    error = asyncio.run(main())
    assert (error.filtered, error.status, error.useless) == (True, 200, False)


@pytest.mark.parametrize(
    ("reply", "calls", "said"),
    [
        (http(completion(None, reasoning_content="hm")), 2, "or turn thinking off"),
        (http(completion(None, "length", reasoning="hm")), 2, "or turn thinking off"),
        (http(completion(3)), 4, "did not reply with a chat completion: "),
        (http({"choices": []}), 4, "did not reply with a chat completion: '{\"choices\": []}'"),
        (http(b"<html>login</html>"), 4, "it is a web page: check that the URL is the API's"),
        (http(b"data: {}\n\n"), 4, "it streams: remove stream from extra_body"),
        (http(b"", "204 No Content"), 4, "did not reply with a chat completion: ''"),
        (http(b"x", Content_Encoding="br"), 4, "it is encoded as 'br', which was not requested"),
        (http(b"nonsense", Content_Encoding="gzip"), 4, "its compression is damaged"),
        (http(b'{"choices":' + b"[" * 100_000), 4, "did not reply with a chat completion: "),
    ],
)
def test_permanent_failures_are_not_retried_until_deadline(reply, calls, said):
    verdict, server = ask(reply, deadline_s=600.0)
    assert verdict.value is None
    assert said in verdict.reason
    assert len(server.heads) == calls


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_response_body_is_read_only_up_to_limit(encoding):
    """With and without a Content-Length."""
    packed = zlib.compressobj(1, zlib.DEFLATED, 31)
    bomb = b"".join(packed.compress(b" " * (1 << 20)) for _ in range(256)) + packed.flush()
    endless = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + b" " * (1 << 20) + b"\r\n") * 32
    )
    verdict, server = ask(http(bomb, Content_Encoding="gzip") if encoding else endless)
    assert verdict.value is None
    assert "its body is longer than 8 MiB" in verdict.reason
    assert len(server.heads) == 4
    assert "accept-encoding: identity" in server.heads[0].lower()


def echoes(key: str) -> dict[str, str]:
    """Return the forms in which servers echo a key."""
    return {
        "plain": key,
        "in a URL": quote(key, safe=""),
        "as JSON escapes": "".join(f"\\u{ord(sign):04x}" for sign in key),
        "as doubled JSON escapes": "".join(f"\\\\u{ord(sign):04X}" for sign in key),
        "as base64": base64.b64encode(key.encode()).decode(),
        "as Basic authentication": base64.b64encode(f"user:{key}".encode()).decode(),
        "as base64 for URLs": base64.urlsafe_b64encode(f"x{key}".encode()).decode(),
        "as hexadecimal digits": key.encode().hex(),
        "its beginning": key[:14],
        "its end": key[-16:],
        "its middle": key[6:22],
    }


@pytest.mark.parametrize("form", echoes(KEY))
@pytest.mark.parametrize("kind", ["refusal", "verdict", "no verdict", "unreadable", "filter"])
def test_echoed_api_key_never_appears_in_verdict_log_or_cache(form, kind, tmp_path, caplog):
    """Not in messages, verdicts or the cache, even if truncation would cut through the echoed key."""
    echo = echoes(KEY)[form]
    half = len(echo) // 2
    replies = {
        "refusal": http(b"y" * (300 - half) + echo.encode() + b"z" * 50, "400 X"),
        "verdict": http(completion("y" * (2000 - half - len(YES)) + YES + echo)),
        "no verdict": http(completion(echo + "q" * (300 - half))),
        "unreadable": http(b"y" * (300 - half) + echo.encode()),
        "filter": http(b"content filter " + b"y" * (285 - half) + echo.encode(), "400 X"),
    }
    file = tmp_path / "v.sqlite"
    with caplog.at_level(logging.DEBUG, "verl_p2r"):
        verdict, _ = ask(replies[kind], cache_file=str(file))
    assert verdict.value is {"verdict": True, "filter": False}.get(kind)
    shown = verdict.reason + caplog.text + file.read_bytes().decode("latin-1")
    pieces = {echo[i : i + 15] for i in range(len(echo) - 14)}
    assert not [piece for piece in pieces if piece in shown]


@pytest.mark.parametrize("key", [KEY, "EMPTY", "", "judge-key-of-the-lab", "x" * 164])
def test_redactor_removes_only_the_key(key):
    redactor = Redactor(key)
    for text in ("", "A red ball. <judgement>Yes</judgement>", "sk-", "EMPTY", "judge-ke", key[:7], "xxxxxxx"):
        assert redactor.whole(text) == text or text == key
        assert redactor.all(text) == text or "judge-ke" in key
    if len(key) >= 8:
        assert redactor.whole(f"a {key} b {key}") == redactor.all(f"a {key} b {key}") == "a *** b ***"


def headers_of(head: str) -> dict[str, str]:
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}


def test_api_key_is_sent_without_openai_account_headers(monkeypatch):
    verdict, server = ask(http(completion(YES)))
    sent = headers_of(server.heads[0])
    assert verdict.value is True
    assert sent["authorization"] == f"Bearer {KEY}"
    assert not {"api-key", "openai-organization", "openai-project", "cookie"} & set(sent)
    _, server = ask(http(completion(YES)), "?api-version=2024-10-21")
    sent = headers_of(server.heads[0])
    assert server.heads[0].startswith("POST /v1/chat/completions?api-version=2024-10-21 ")
    assert sent["api-key"] == KEY
    assert "authorization" not in sent
    monkeypatch.setenv("OPENAI_API_KEY", "eyJhbGciOi.token.of-entra")
    _, server = ask(http(completion(YES)), "?api-version=2024-10-21")
    assert headers_of(server.heads[0])["authorization"] == "Bearer eyJhbGciOi.token.of-entra"
    monkeypatch.delenv("OPENAI_API_KEY")
    _, server = ask(http(completion(YES)))
    assert "authorization" not in headers_of(server.heads[0])


@pytest.mark.parametrize(
    ("host", "sent"), [("api.openai.com", True), ("eu.api.openai.com", True), ("openai.com.evil.example", False)]
)
def test_account_headers_are_sent_only_to_openai(host, sent):
    client = ChatClient("m", f"https://{host}/v1")
    headers = client._key.options(client._routes[0])["headers"]
    assert (headers.get("OpenAI-Organization"), headers.get("OpenAI-Project")) == (
        ("org-7", "proj-8") if sent else (None, None)
    )


@pytest.mark.parametrize("key", ["sk-0123456789\u00e9", "sk-01234\n56789"])
def test_api_key_invalid_in_headers_is_named_by_variable(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    verdict, server = ask(http(completion(YES)))
    assert verdict.reason == (
        "the API key in $OPENAI_API_KEY contains a character that HTTP headers do not allow: copy it again"
    )
    assert not server.heads


def test_errors_from_proxy_name_the_proxy(monkeypatch):
    """Over plain HTTP the proxy sees the whole request; only the proxy gets its login."""

    async def through(reply):
        async with ScriptedServer(lambda head, body: reply) as proxy:
            monkeypatch.setenv("http_proxy", f"http://me:hunter2pw@127.0.0.1:{proxy.port}")
            return await judged("http://judge.example:8000/v1", deadline_s=5.0), proxy

    for status, said in (
        ("407 Proxy Authentication Required", "the proxy requires a login: add it to the proxy's URL"),
        ("403 Forbidden", "or the proxy refuses: to go without this proxy, add judge.example to NO_PROXY"),
    ):
        verdict, proxy = asyncio.run(through(http(b"no", status)))
        assert verdict.value is None
        assert (
            f"http://judge.example:8000/v1 through the proxy http://127.0.0.1:{proxy.port} answered" in verdict.reason
        )
        assert said in verdict.reason
        assert "hunter2pw" not in verdict.reason
        assert len(proxy.heads) == 1
    verdict, proxy = asyncio.run(through(http(completion(YES))))
    assert verdict.value is True
    assert proxy.heads[0].startswith("POST http://judge.example:8000/v1/chat/completions ")
    assert headers_of(proxy.heads[0])["proxy-authorization"] == "Basic " + base64.b64encode(b"me:hunter2pw").decode()


@pytest.mark.parametrize(("status", "calls"), [("407 Proxy Authentication Required", 1), ("403 Forbidden", 1)])
def test_a_proxy_that_refuses_to_connect_is_named(monkeypatch, status, calls):
    async def main():
        async with ScriptedServer(lambda head, body: http(b"", status)) as proxy:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            return await judged("https://judge.example/v1", deadline_s=5.0), proxy

    verdict, proxy = asyncio.run(main())
    assert (
        f"through the proxy http://127.0.0.1:{proxy.port}: the proxy refused with HTTP {status[:3]}" in verdict.reason
    )
    assert "add judge.example to NO_PROXY or set use_proxy=False" in verdict.reason
    assert [head.split()[:2] for head in proxy.heads] == [["CONNECT", "judge.example:443"]] * calls


def test_unreachable_proxy_is_named(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    verdict = asyncio.run(judged("http://judge.example/v1", deadline_s=1.0, timeout_s=1.0, connect_timeout_s=1.0))
    assert "through the proxy http://127.0.0.1:1: cannot reach the proxy" in verdict.reason
    assert "set use_proxy=False" in verdict.reason

    async def main():
        client = ChatClient("m", "http://judge.example/v1", deadline_s=60.0)
        with pytest.raises(Unanswered, match="cannot reach the proxy"):
            await client.reach()
        await client.aclose()

    monkeypatch.setattr(chat_client, "_REACH_S", 0.05)
    asyncio.run(main())


def test_reach_does_not_repeat_what_stays_wrong(monkeypatch):
    async def main():
        async with ScriptedServer(lambda head, body: http(b"", "407 Proxy Authentication Required")) as proxy:
            monkeypatch.setenv("http_proxy", proxy.base_url.removesuffix("/v1"))
            client = ChatClient("m", ["http://one.example/v1", "http://two.example/v1"])
            with pytest.raises(Unanswered) as caught:
                await client.reach()
            await client.aclose()
            return str(caught.value), len(proxy.bodies)

    message, asked = asyncio.run(main())
    assert "407" in message
    assert "start the server" not in message
    assert asked == 2


def test_404_from_url_without_path_suggests_v1():
    async def main():
        async with ScriptedServer(lambda head, body: http(b"{}", "404 Not Found")) as server:
            return await judged(server.base_url.removesuffix("/v1")), server.base_url

    verdict, base_url = asyncio.run(main())
    assert verdict.reason.endswith(f"or the URL lacks its path, usually /v1: try {base_url}")


def test_retries_send_same_prompt_and_new_calls_a_new_code():
    replies = iter([http(completion("hm")), http(completion(YES)), http(completion(YES))])

    async def main():
        async with ScriptedServer(lambda head, body: next(replies)) as server:
            judge = OpenAIJudge("m", server.base_url)
            first, again, uncached = (
                await judge.judge(REQUEST),
                await judge.judge(REQUEST),
                await judge.ask_anew(REQUEST),
            )
            await judge.aclose()
            return first, again, uncached, [json.loads(body)["messages"][0]["content"] for body in server.bodies]

    first, again, uncached, prompts = asyncio.run(main())
    assert [v.source for v in (first, again, uncached)] == ["judge", "cache", "judge"]
    assert first.retries == 1
    assert prompts[0] == prompts[1] != prompts[2]
