# SPDX-License-Identifier: Apache-2.0
"""Every hook of this package into verl, and a check of each against the installed verl.

    python -m verl_p2r.plugin.hooks

`hooks.yaml` is the table. The check compares signatures, and names what a newer verl has changed.
"""

import ast
import importlib
import inspect
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from verl_p2r.plugin import no_gpu

_MARK = "HOOKS"  # starts the line of the fresh process that holds the result
_SECONDS = 300.0  # limit of the fresh process


@dataclass(frozen=True)
class Hook:
    """One name of verl that a file of ours depends on.

    Args:
        file: our file, below `verl_p2r/plugin`.
        kind: `uses`, `overrides` or `reads`.
        name: the name in verl, with dots.
        needs: its parameters; or `class`, `module`, `value` or `attribute`.
    """

    file: str
    kind: str
    name: str
    needs: str


@dataclass(frozen=True)
class FileOfHooks:
    """The hooks of one file.

    Args:
        file: our file, below `verl_p2r/plugin`.
        purpose: what they are for.
        loaded_by: what loads the file; empty if our other files import it.
        hooks: one for each name of verl.
    """

    file: str
    purpose: str
    loaded_by: str
    hooks: tuple[Hook, ...]


@dataclass(frozen=True)
class Checked:
    """The hooks of one file, checked against the installed verl.

    Args:
        file: our file, below `verl_p2r/plugin`.
        count: number of its hooks.
        changed: one sentence for each hook that verl has changed; empty when all are as needed.
    """

    file: str
    count: int
    changed: tuple[str, ...]


def hook_table() -> list[FileOfHooks]:
    """Read the table.

    Returns:
        One entry for each of our files that touches verl.
    """
    text = resources.files(__package__).joinpath("hooks.yaml").read_text(encoding="utf-8")
    return [
        FileOfHooks(file, node["purpose"], node.get("loaded by", ""), tuple(_hooks_of(file, node)))
        for file, node in yaml.safe_load(text).items()
    ]


def _hooks_of(file: str, node: dict[str, Any]) -> Iterator[Hook]:
    for name, needs in node.get("uses", {}).items():
        yield Hook(file, "uses", name, needs)
    for owner, methods in node.get("overrides", {}).items():
        for method, needs in methods.items():
            yield Hook(file, "overrides", f"{owner}.{method}", needs)
    for owner, attributes in node.get("reads", {}).items():
        for attribute in attributes:
            yield Hook(file, "reads", f"{owner}.{attribute}", "attribute")


def check_hooks() -> list[Checked]:
    """Compare each hook with the installed verl, in this process. Imports most of verl.

    Returns:
        One entry for each of our files, in the order of the table.
    """
    return [
        Checked(entry.file, len(entry.hooks), tuple(text for hook in entry.hooks if (text := change_of(hook))))
        for entry in hook_table()
    ]


def check_hooks_in_fresh_process() -> list[Checked]:
    """Compare each hook with verl in a new interpreter, where verl loads this package as in a run.

    Raises:
        RuntimeError: the process fails or does not end; the message is the last line of its errors.
    """
    command = [sys.executable, "-m", __name__, "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"did not end within {_SECONDS:.0f} s") from None
    line = next((line for line in done.stdout.splitlines() if line.startswith(_MARK)), None)
    if line is None:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    entries = json.loads(line.removeprefix(_MARK))
    return [Checked(entry["file"], entry["count"], tuple(entry["changed"])) for entry in entries]


def change_of(hook: Hook) -> str:
    """Say what verl has changed about a hook.

    Args:
        hook: from the table.

    Returns:
        One sentence; empty when verl has what the hook needs.
    """
    if hook.kind == "reads":
        owner, _, attribute = hook.name.rpartition(".")
        try:
            known = attribute in _attributes(_resolve(owner))
        except (ImportError, AttributeError) as error:
            return f"{hook.name} is gone: {error}"
        return "" if known else f"{owner} no longer sets {attribute}"
    try:
        found = describe(_resolve(hook.name))
    except (ImportError, AttributeError) as error:
        return f"{hook.name} is gone: {error}"
    return "" if found == hook.needs else f"{hook.name} is {found}, and we need {hook.needs}"


def describe(thing: Any) -> str:
    """Describe a name of verl as the table does.

    Args:
        thing: a function, method, class, module or value.

    Returns:
        The names of its parameters, with `=…` for those with a default; or `class`, `module` or `value`.
    """
    if inspect.ismodule(thing):
        return "module"
    if inspect.isclass(thing):
        return "class"
    if isinstance(thing, classmethod | staticmethod):
        thing = thing.__func__
    if not callable(thing):
        return "value"
    return f"({', '.join(_parameters(inspect.signature(thing)))})"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    marks: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    starred = False
    for parameter in signature.parameters.values():
        if parameter.name.startswith("_ray_"):  # Ray adds one to the methods of its actors
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            yield "*"
        starred = starred or parameter.kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.KEYWORD_ONLY,
        )
        default = "" if parameter.default is inspect.Parameter.empty else "=…"
        yield f"{marks.get(parameter.kind, '')}{parameter.name}{default}"


def _resolve(name: str) -> Any:
    """Find a dotted name. The longest beginning that is a module is imported."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        module = ".".join(parts[:cut])
        try:
            thing = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if cut > 1 and error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
                continue
            raise
        for part in parts[cut:]:
            owner = _plain(thing)
            # A class's own entry, because a bound class method would hide its first parameter.
            thing = inspect.getattr_static(owner, part) if inspect.isclass(owner) else getattr(owner, part)
        return _plain(thing)
    raise ModuleNotFoundError(name)


def _plain(thing: Any) -> Any:
    """The class behind Ray's actor class."""
    return getattr(thing, "__ray_actor_class__", thing)


@cache
def _attributes(cls: type) -> frozenset[str]:
    """The attributes of a class, and those that its methods set on `self`."""
    names = set(dir(cls)) | {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}
    for base in cls.__mro__:
        if base is not object:
            names |= _set_on_self(base)
    return frozenset(names)


def _set_on_self(cls: type) -> set[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # a class without Python source
        return set()
    stores = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in stores if isinstance(node.value, ast.Name) and node.value.id == "self"}


def main(arguments: list[str]) -> int:
    """Print the state of the hooks of each file.

    Args:
        arguments: `--json` prints one line for `check_hooks_in_fresh_process`.

    Returns:
        1 if verl has changed any hook, else 0.

    Raises:
        SystemExit: verl cannot be imported here, because torch is a CPU build and VERL_PLATFORM is not set.
    """
    if no_gpu.cpu_build() and not no_gpu.accelerator_found():
        sys.exit(no_gpu.MESSAGE)
    with redirect_stdout(sys.stderr):  # verl prints while it is imported
        checked = check_hooks()
    if "--json" in arguments:
        print(_MARK + json.dumps([asdict(one) for one in checked]))
        return 0
    for one in checked:
        print(f"{one.file}: {one.count - len(one.changed)} of {one.count} hooks as needed")
        for text in one.changed:
            print(f"  {text}")
    return int(any(one.changed for one in checked))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
