# SPDX-License-Identifier: Apache-2.0
"""Show which faults of verl are still there. Needs verl, transformers, and vllm for one; no GPU, nothing of verl_p2r.

    python upstream/reproduce.py            # all of them, about a minute
    python upstream/reproduce.py NAME ...

Each module in `reproductions/` has a function `fault` that returns what it saw, or None when verl has fixed the fault,
and a text `THEN` that says which files of verl_p2r a fixed verl makes unnecessary.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import sys
import traceback
from pathlib import Path

os.environ["VERL_USE_EXTERNAL_PLUGINS"] = "none"  # verl as it is, also where plugins are installed
os.environ["VLLM_PLUGINS"] = ""  # and vLLM, whose plugins may come from the same packages
os.environ.pop("VERL_PLATFORM", None)  # it may name a plugin's platform
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
NAMES = sorted(path.stem for path in (HERE / "reproductions").glob("[!_]*.py"))


def reproduce(name: str) -> dict[str, str | None]:
    """Run one reproduction.

    Args:
        name: one of `NAMES`.

    Returns:
        `seen`: the fault, or None; `error`: why the reproduction could not run, or None; `then`.
    """
    module = importlib.import_module(f"reproductions.{name}")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # verl prints while it works
            return {"seen": module.fault(), "error": None, "then": module.THEN}
    except Exception:
        return {"seen": None, "error": traceback.format_exc(limit=-4), "then": module.THEN}


def main(arguments: list[str]) -> int:
    """Run reproductions and print a line for each.

    Args:
        arguments: names; `--json` prints one line of JSON instead.

    Returns:
        1 if a reproduction could not run, else 0.
    """
    names = [argument for argument in arguments if argument != "--json"] or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        print(f"no such reproduction: {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    found = {name: reproduce(name) for name in names}
    if "--json" in arguments:
        print(json.dumps(found))
        return 0
    print(f"verl {importlib.metadata.version('verl')}, transformers {importlib.metadata.version('transformers')}")
    for name, result in found.items():
        state = "could not run" if result["error"] else "fault" if result["seen"] else "fixed"
        print(f"{name}: {state}\n  {result['error'] or result['seen'] or result['then']}")
    return int(any(result["error"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
