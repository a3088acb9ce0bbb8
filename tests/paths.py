# SPDX-License-Identifier: Apache-2.0
"""Folders of the repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "tests" / "cases"
EXAMPLES = ROOT / "examples"
QUICKSTART = EXAMPLES / "quickstart"
