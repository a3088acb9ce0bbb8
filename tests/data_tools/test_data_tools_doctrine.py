# SPDX-License-Identifier: Apache-2.0
"""The rule of the house: data tools stand on the method alone, without its plugin, verl or ray.

`generate_ray` alone uses Ray, and imports it when it runs: to import the module must not.
"""

import subprocess
import sys
from pathlib import Path

from paths import ROOT

import data_tools

MODULES = sorted(path.stem for path in Path(data_tools.__file__).parent.glob("*.py") if not path.stem.startswith("__"))


def test_importing_the_data_tools_imports_neither_the_plugin_nor_verl_nor_ray():
    imports = ", ".join(f"data_tools.{module}" for module in MODULES)
    banned = {"verl", "ray", "verl_p2r.plugin"}
    script = f"import sys, {imports}; print(sorted({banned!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert {"records", "to_parquet", "cli"} <= set(MODULES)


def test_nothing_is_evaluated_and_the_plugin_is_named_nowhere():
    for path in Path(data_tools.__file__).parent.glob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert " eval(" not in code, path
        assert "from verl_p2r.plugin" not in code, path
        assert "import verl_p2r.plugin" not in code, path
