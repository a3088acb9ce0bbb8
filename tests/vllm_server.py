# SPDX-License-Identifier: Apache-2.0
"""A real vLLM server on the CPU, behind OpenAI's chat completions."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from processes import family, kill


@contextlib.contextmanager
def vllm_server(
    model: Path,
    name: str,
    log: Path,
    env: Mapping[str, str],
    limit: float,
    *,
    length: int,
    rows: int,
    python: str | Path = sys.executable,
    options: Sequence[str] = (),
) -> Iterator[str]:
    """Run a server and yield its URL.

    Args:
        model: folder of the model.
        name: name under which it is served.
        log: file for what the server prints.
        env: environment of the server.
        limit: seconds that it may take to come up.
        length: the most tokens of a prompt and its reply.
        rows: the most sequences in progress.
        python: the interpreter whose vLLM runs; by default this one's.
        options: more options of the server.
    """
    start = time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", str(length), "--max-num-seqs", str(rows)]
    command += ["--no-enable-log-requests", *options]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=env, start_new_session=True)
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() - start < limit, f"no server:\n{log.read_text()[-3000:]}"
                time.sleep(0.5)
        assert process.poll() is None, f"the server has ended:\n{log.read_text()[-3000:]}"
        print(f"\nserver: {time.monotonic() - start:.0f} s", flush=True)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Kill a process and all that it has started."""
    if process.poll() is None:
        kill(family(process.pid))
    process.wait(30)
