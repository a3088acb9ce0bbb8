# SPDX-License-Identifier: Apache-2.0
"""Where verl's own code mentions a setting."""

import ast
import importlib.util
from pathlib import Path


def readers(setting: str) -> list[str]:
    """Files of verl that mention a setting in code or in a string, except where it is only declared or documented.

    Args:
        setting: its name.

    Returns:
        Paths below verl's package.
    """
    spec = importlib.util.find_spec("verl")
    root = Path(str(spec and spec.origin)).parent
    return [str(path.relative_to(root)) for path in sorted(root.rglob("*.py")) if _mentions(path, setting)]


def _mentions(path: Path, setting: str) -> bool:
    text = path.read_text(encoding="utf-8")
    if setting not in text:
        return False
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
        elif isinstance(node, ast.keyword):
            names.add(node.arg)
    return setting in names
