# SPDX-License-Identifier: Apache-2.0
"""The rule of the house: the method stands without verl and ray."""

import subprocess
import sys
from pathlib import Path

import pytest

import verl_p2r

PACKAGE = Path(verl_p2r.__file__).parent
PURE = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__"))


@pytest.mark.parametrize(
    "modules",
    [["verl_p2r"], [f"verl_p2r.{module}" for module in PURE]],
    ids=["package root", "every pure module"],
)
def test_importing_the_pure_side_imports_neither_verl_nor_ray(modules):
    script = f"import sys, {', '.join(modules)}; print(sorted({{'verl', 'ray'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert {"template", "segments", "advantages"} <= set(PURE)
