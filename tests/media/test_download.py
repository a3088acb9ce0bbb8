# SPDX-License-Identifier: Apache-2.0
"""URLs of media: off unless allowed, and then bounded in time, in bytes, and to one host."""

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from verl_p2r.media import download
from verl_p2r.media.images import read_image
from verl_p2r.media.plan import MediaError
from verl_p2r.media.probe import probe_element
from verl_p2r.plugin.media.media_cache import Source


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (56, 84), "red").save(file, "PNG")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """`/image`, `/slow` (a byte in a while, for ever), `/moved` (to /image), `/away` (to another host), `/gone`."""

    def do_GET(self):
        self.server.paths.append(self.path)
        port = self.server.server_port
        if self.path in ("/moved", "/away", "/round"):
            target = {"/moved": "/image", "/away": f"http://localhost:{port}/image", "/round": "/round"}[self.path]
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            while not self.server.ended.wait(0.05):
                self.wfile.write(b"x")
        elif self.path == "/gone":
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(png())))
            self.end_headers()
            self.wfile.write(png())

    def log_message(self, *args):
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.paths, server.ended, server.daemon_threads = [], threading.Event(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.ended.set()
    server.shutdown()


def url(server, path) -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("more", [{}, {"allow_urls": False}, {"allow_urls": "yes"}, {"allow_urls": 1}], ids=str)
def test_urls_are_refused_by_default_for_images_and_videos(server, kind, more):
    for address in (url(server, "/image"), url(server, "/image").replace("http", "HTTP")):
        element = {"type": kind, kind: address, **more}
        with pytest.raises(MediaError, match=r"URLs are not read: download the file, or set data\.p2r\.allow_urls"):
            probe_element(element)
        with pytest.raises(MediaError, match="URLs are not read"):
            Source(kind, json.dumps({kind: address, **more}), 14).decode()
    assert server.paths == []


@pytest.mark.parametrize("path", ["/image", "/moved"])
def test_urls_that_are_allowed_are_fetched(server, path):
    element = {"type": "image", "image": url(server, path), "allow_urls": True}
    assert probe_element(element) == (84, 56)
    assert read_image(element).size == (56, 84)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/away", "redirects to another host or scheme: use the address it leads to, http://localhost:"),
        ("/round", "redirects more than 5 times"),
        ("/gone", "cannot be fetched .*404"),
    ],
)
def test_failed_download_raises_error_with_reason(server, path, reason):
    with pytest.raises(MediaError, match=reason):
        probe_element({"image": url(server, path), "allow_urls": True})
    assert "/image" not in server.paths


def test_download_size_is_limited(server, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 20)
    with pytest.raises(MediaError, match="more than 20 bytes"):
        probe_element({"image": url(server, "/image"), "allow_urls": True})


def test_download_deadline_applies_to_slow_and_silent_servers(server, monkeypatch):
    monkeypatch.setenv("VERL_P2R_MEDIA_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for address in (url(server, "/slow"), f"http://127.0.0.1:{silent.getsockname()[1]}/x"):
            start = time.monotonic()
            with pytest.raises(MediaError, match="not read within 1 s"):
                probe_element({"image": address, "allow_urls": True})
            assert time.monotonic() - start < 30  # it ends: without the deadline it never would


def test_unreachable_server_error_names_address():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(MediaError, match=f"127.0.0.1:{port}/a.png: cannot be fetched"):
        probe_element({"image": f"http://127.0.0.1:{port}/a.png", "allow_urls": True})
