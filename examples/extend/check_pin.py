# SPDX-License-Identifier: Apache-2.0
"""What to look at before you raise the verl pin: the modules we hook into, and the code that waits for a newer verl.

python examples/extend/check_pin.py
"""

import importlib.util
import re
import sys
from pathlib import Path

import verl_p2r
from verl_p2r.plugin import REGISTRATIONS


def missing_doors() -> list[str]:
    """Modules of verl that we register with and that the installed verl does not have."""
    return [door for door in REGISTRATIONS if importlib.util.find_spec(door) is None]


def waiting() -> dict[str, str]:
    """Our files that a newer verl or vLLM makes unnecessary → when."""
    package = Path(verl_p2r.__file__).parent
    found = {}
    for path in sorted(package.rglob("*.py")):
        text = " ".join(path.read_text(encoding="utf-8").split())
        if match := re.search(r"Remove (?:it|this)(?: module)? when ([^.\"]*)", text):
            found[str(path.relative_to(package))] = match[1]
    return found


if __name__ == "__main__":
    for file, when in waiting().items():
        print(f"{file}: remove it when {when}")
    if doors := missing_doors():
        sys.exit(f"verl no longer has {', '.join(doors)}: find where they went, and change REGISTRATIONS")
    print(f"all {len(REGISTRATIONS)} doors are there; now run verl-p2r doctor and make test")
