# SPDX-License-Identifier: Apache-2.0
"""What to look at before you raise the verl pin: the hooks that verl has changed, and our files that wait for verl.

python examples/extend/check_pin.py
"""

import importlib.metadata
import re
import sys
from pathlib import Path

import verl_p2r
from verl_p2r.plugin.hooks import Checked, check_hooks_in_fresh_process


def waiting() -> dict[str, str]:
    """Our files that a newer verl or vLLM makes unnecessary → what can be removed when."""
    package = Path(verl_p2r.__file__).parent
    found = {}
    for path in sorted(package.rglob("*.py")):
        text = " ".join(path.read_text(encoding="utf-8").split())
        if match := re.search(r"Remove ([^.]{1,40}? when [^.\"]*)", text):
            found[str(path.relative_to(package))] = match[1]
    return found


def outcome(checked: list[Checked]) -> tuple[str, bool]:
    """What to print about the hooks, and whether all are as needed."""
    verl = f"verl {importlib.metadata.version('verl')}"
    if changed := [f"{one.file}: {text}" for one in checked for text in one.changed]:
        changed.append(f"{verl} has changed {len(changed)} hooks: adapt these files and hooks.yaml")
        return "\n".join(changed), False
    hooks = sum(one.count for one in checked)
    return f"all {hooks} hooks are in {verl} as needed; now run verl-p2r doctor and make test", True


if __name__ == "__main__":
    for file, what in waiting().items():
        print(f"{file}: remove {what}")
    text, good = outcome(check_hooks_in_fresh_process())
    print(text)
    sys.exit(not good)
