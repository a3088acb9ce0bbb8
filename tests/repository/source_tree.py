# SPDX-License-Identifier: Apache-2.0
"""The Python files of the repository and what they import, read with `ast`; nothing is executed."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

PACKAGES = ("verl_p2r", "data_tools")
FOLDERS = (*PACKAGES, "tests", "examples", "benchmarks", "docs", "upstream")


@dataclass(frozen=True)
class Import:
    """One import statement.

    Args:
        source: The module that contains it.
        target: The imported module; for a name inside a package, the module that holds the name.
        line: Its line number.
    """

    source: str
    target: str
    line: int


def python_files(*folders: str) -> list[Path]:
    """Return every Python file below some folders of the repository, in a fixed order."""
    return [path for folder in folders or FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    """Return the dotted module name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(*packages: str) -> dict[str, Path]:
    """Return module name → file for every module of some packages."""
    return {module_of(path): path for path in python_files(*packages or PACKAGES)}


def imports(path: Path) -> Iterator[Import]:
    """Yield a file's imports, those inside functions included, those under `if TYPE_CHECKING` not."""
    source, known = module_of(path), modules()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _run_time_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(source, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield Import(source, inside if inside in known else str(node.module), node.lineno)


def _run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _run_time_nodes(child)
