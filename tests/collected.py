# SPDX-License-Identifier: Apache-2.0
"""The numbers of tests that pytest found, by file and by function."""

from collections import Counter
from collections.abc import Iterable

import pytest
from paths import ROOT

COLLECTED = pytest.StashKey[Counter[str]]()
"""Numbers under names such as `data/test_values.py` and `data/test_values.py::test_numbers`, below `tests/`."""


def count(items: Iterable[pytest.Item]) -> Counter[str]:
    """Count tests below `tests/` by file and by function."""
    numbers: Counter[str] = Counter()
    for item in items:
        if isinstance(item, pytest.Function) and item.path.is_relative_to(ROOT / "tests"):
            file = item.path.relative_to(ROOT / "tests").as_posix()
            numbers.update((file, f"{file}::{item.originalname}"))
    return numbers
