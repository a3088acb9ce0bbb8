# SPDX-License-Identifier: Apache-2.0
"""The rules that CONTRIBUTING states: floors, import circles, dependencies, and the size of files and functions."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest
from paths import ROOT
from source_tree import FOLDERS, Import, imports, modules, python_files

# Each wing may import itself and the wings of the rows above it.
FLOORS = (
    ("the method",),
    ("verl_p2r.chat",),
    ("verl_p2r.media",),
    ("verl_p2r.judge",),
    ("verl_p2r.data",),
    ("verl_p2r.prefix", "verl_p2r.planner", "verl_p2r.evaluation"),
    ("verl_p2r.plugin", "data_tools"),
)
NETWORK = {
    "aiohttp",
    "ftplib",
    "http",
    "httpx",
    "openai",
    "requests",
    "socket",
    "urllib.request",
    "urllib3",
    "websockets",
}
MAY_USE_THE_NETWORK = ("verl_p2r.chat.", "verl_p2r.media.download")
MAX_LINES, MAX_FUNCTION_LINES = 400, 60
# File::function → why it may be longer than 60 lines without its docstring.
LONG_FUNCTIONS: dict[str, str] = {}


@cache
def all_imports() -> tuple[Import, ...]:
    """Every import of the two packages."""
    return tuple(found for path in modules().values() for found in imports(path))


def wing_of(module: str) -> str:
    """The wing that a module belongs to; the files at the top of `verl_p2r` and `answers/` are the method."""
    wings = [wing for floor in FLOORS for wing in floor]
    return next((wing for wing in wings if module == wing or module.startswith(f"{wing}.")), "the method")


def floor_of(wing: str) -> int:
    """The row of a wing in FLOORS."""
    return next(number for number, floor in enumerate(FLOORS) if wing in floor)


def test_imports_between_packages_follow_layer_order():
    known = modules()
    wrong = [
        f"{known[found.source].relative_to(ROOT)}:{found.line} imports {found.target}"
        for found in all_imports()
        if found.target in known
        and wing_of(found.source) != wing_of(found.target)
        and floor_of(wing_of(found.source)) <= floor_of(wing_of(found.target))
    ]
    assert wrong == []


def test_no_circular_imports():
    edges: dict[str, set[str]] = {module: set() for module in modules()}
    for found in all_imports():
        if found.target in edges and found.target != found.source:
            edges[found.source].add(found.target)
    assert list(circles(edges)) == []


def circles(edges: dict[str, set[str]]) -> Iterator[str]:
    """Yield one path for each edge that closes a circle, found by depth-first search."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> Iterator[str]:
        if module in path:
            yield " → ".join([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(edges[module]):
                yield from visit(target, [*path, module])
            done.add(module)

    for module in sorted(edges):
        yield from visit(module, [])


def test_circular_import_check_finds_a_cycle():
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == ["b → c → b"]
    assert list(circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []


def test_only_the_chat_client_and_downloads_use_the_network():
    wrong = [
        f"{found.source}:{found.line} imports {found.target}"
        for found in all_imports()
        if (found.target in NETWORK or found.target.split(".")[0] in NETWORK)
        and not found.source.startswith(MAY_USE_THE_NETWORK)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("verl_p2r", {"verl", "ray"}),
        ("data_tools", {"verl", "ray", "verl_p2r.plugin"}),
    ],
)
def test_importing_everything_outside_the_plugin_loads_neither_verl_nor_ray(package, absent):
    names = [name for name in modules(package) if not name.startswith("verl_p2r.plugin") and "__main__" not in name]
    assert len(names) > 20
    assert loaded(names, absent) == "[]"


def test_importing_the_judge_loads_no_network_client():
    assert loaded(["verl_p2r.judge"], {"aiohttp", "openai", "requests"}) == "[]"


def loaded(names: list[str], watched: set[str]) -> str:
    """Import modules in a fresh interpreter and return which of the watched ones were loaded."""
    script = f"import sys, {', '.join(names)}; print(sorted({watched!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_eval_and_exec_are_never_called():
    for path in python_files("verl_p2r", "data_tools"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            assert called not in ("eval", "exec"), f"{path}:{node.lineno}"


def test_no_file_is_longer_than_400_lines():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(*FOLDERS)
    }
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_two_test_files_share_a_name():
    """Pytest imports test files by their name alone and stops at the second one."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_function_is_longer_than_60_lines():
    """Docstrings do not count: those of the method state shapes, units, edge rules and errors."""
    long = {}
    for path in python_files(*FOLDERS):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                lines = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())
                if lines > MAX_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}::{node.name}"] = lines
    assert long.keys() == LONG_FUNCTIONS.keys(), long
