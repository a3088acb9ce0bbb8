# SPDX-License-Identifier: Apache-2.0
"""Loads a tokenizer that says where its tokens begin."""

from typing import Any


def fast_tokenizer(name: str) -> Any:
    """Load a fast tokenizer of Transformers.

    Args:
        name: folder or name of the model.

    Raises:
        ValueError: the model has only a slow tokenizer.
        OSError: there is no such model.
    """
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(name)
    if not loaded.is_fast:
        raise ValueError(f"{name} has only a slow tokenizer, which does not say where its tokens begin: name another")
    return loaded
