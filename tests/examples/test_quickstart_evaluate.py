# SPDX-License-Identifier: Apache-2.0
"""`evaluate.py` and `ask.py` before a model is loaded: what a missing checkpoint looks like."""

import importlib
import sys

import pytest
from paths import QUICKSTART
from quickstart_runs import invoke

sys.path.insert(0, str(QUICKSTART))


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("evaluate", ["no/such", "--name", "rl"]), ("ask", ["--checkpoint", "no/such"])],
)
def test_a_missing_checkpoint_is_named(script, arguments):
    done = invoke(importlib.import_module(script).main, *arguments)
    assert done.exit_code == 2
    assert "'no/such' does not exist" in " ".join(done.output.replace("│", " ").split())
