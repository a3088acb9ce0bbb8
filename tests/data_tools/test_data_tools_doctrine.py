# SPDX-License-Identifier: Apache-2.0
"""The data tools depend on the method alone, not on the plugin, verl or ray.

Only `generate_ray` uses Ray, and it imports Ray when it runs, not when it is imported.
"""

import subprocess
import sys
from pathlib import Path

from paths import ROOT

import data_tools

FOLDER = Path(data_tools.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
MODULES = [
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts)
    for path in FILES
    if path.stem not in ("__init__", "__main__")
]


def test_importing_the_data_tools_imports_neither_the_plugin_nor_verl_nor_ray():
    banned = {"verl", "ray", "verl_p2r.plugin"}
    script = f"import sys, {', '.join(MODULES)}; print(sorted({banned!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert {"data_tools.cli", "data_tools.records.files", "data_tools.steps.to_parquet"} <= set(MODULES)


def test_nothing_is_evaluated_and_the_plugin_is_not_imported():
    for path in FILES:
        code = path.read_text(encoding="utf-8")
        assert " eval(" not in code, path
        assert "from verl_p2r.plugin" not in code, path
        assert "import verl_p2r.plugin" not in code, path
