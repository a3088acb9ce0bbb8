# SPDX-License-Identifier: Apache-2.0
"""How every benchmark ends: its figures as one line of JSON, and with `--record` a line in `history.jsonl`.

A line holds the benchmark, whether it was `--quick`, date, commit, machine, load and figures. The site plots them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HISTORY = Path(__file__).with_name("history.jsonl")


def add_option(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark the option `--record`."""
    parser.add_argument("--record", action="store_true", help=f"append the figures to {HISTORY.name}")


def finish(
    benchmark: str, figures: Mapping[str, float | None], arguments: argparse.Namespace, history: Path = HISTORY
) -> None:
    """Print the figures as JSON and, when asked to, add the run to the history.

    Args:
        benchmark: the script's name.
        figures: name → number; None where this run measures nothing.
        arguments: the parsed command line, with `quick` and `record`.
        history: the file of JSON lines to append to.
    """
    print(json.dumps(dict(figures)))
    if arguments.record:
        run: dict[str, Any] = {
            "benchmark": benchmark,
            "quick": arguments.quick,
            "date": datetime.now(timezone.utc).date().isoformat(),
            "commit": _commit(),
            "machine": machine(),
            "load": round(os.getloadavg()[0], 1),  # processes that wanted a core in the last minute
            "figures": dict(figures),
        }
        with history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")


def machine() -> str:
    """Cores, processor, memory, Python version and, if PyTorch sees one, the GPU of this machine, without its name."""
    processor = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    torch = sys.modules.get("torch")  # a benchmark that needs a GPU has imported it
    gpu = f", {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores, {processor}, {memory:.0f} GB, Python {platform.python_version()}{gpu}"


def _commit() -> str:
    """The checked-out commit, with a `+` when files differ from it; empty outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=HISTORY.parent, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!" + HISTORY.name)
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
