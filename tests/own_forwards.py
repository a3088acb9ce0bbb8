# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL's classes as transformers defines them, where an engine of verl has replaced their methods."""

import contextlib
from collections.abc import Iterator

import pytest
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

# Read when the tests are collected, before any engine exists: an engine replaces the methods for the whole process.
FORWARDS = {cls: cls.forward for cls in (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel)}


@contextlib.contextmanager
def own_forwards() -> Iterator[None]:
    """Restore the classes' own methods, and put back at the end what was there; also a decorator."""
    with pytest.MonkeyPatch.context() as patch:
        for cls, forward in FORWARDS.items():
            patch.setattr(cls, "forward", forward)
        yield
