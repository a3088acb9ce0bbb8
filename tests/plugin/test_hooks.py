# SPDX-License-Identifier: Apache-2.0
"""The table of hooks: verl has each of them as the table says, and no hook of ours is missing from the table."""

import ast
import importlib
import inspect
import re
import textwrap
from types import SimpleNamespace

import pytest
from paths import ROOT
from source_tree import module_of

from verl_p2r.plugin import REGISTRATIONS, hooks, no_gpu
from verl_p2r.plugin.hooks import Checked, Hook, change_of, describe, hook_table

PLUGIN = ROOT / "verl_p2r" / "plugin"
TABLE = hook_table()
HOOKS = [hook for entry in TABLE for hook in entry.hooks]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: f"{hook.file}-{hook.kind}-{hook.name}")
def test_the_installed_verl_has_what_a_hook_needs(hook):
    assert not change_of(hook)


def files_that_import_verl() -> dict[str, set[str]]:
    """File below the plugin → the names of verl that it imports."""
    found = {}
    for path in sorted(PLUGIN.rglob("*.py")):
        names = {
            f"{node.module}.{alias.name}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "verl"
            for alias in node.names
        }
        if names:
            found[str(path.relative_to(PLUGIN))] = names
    return found


def test_every_import_of_verl_is_in_the_table():
    listed = {(hook.file, hook.name) for hook in HOOKS if hook.kind == "uses"}
    imported = {(file, name) for file, names in files_that_import_verl().items() for name in names}
    assert len(imported) > 30
    assert imported - listed == set()


def our_classes() -> list[type]:
    """Every class of the plugin with a class of verl among its bases; mixins are among the bases of some of them."""
    classes = []
    for path in sorted(PLUGIN.rglob("*.py")):
        if str(path.relative_to(PLUGIN)) in {entry.file for entry in TABLE}:
            module = importlib.import_module(module_of(path))
            members = [value for value in vars(module).values() if inspect.isclass(value)]
            classes += [cls for cls in members if cls.__module__ == module.__name__ and theirs(cls)]
    return classes


def theirs(cls: type) -> list[type]:
    return [base for base in cls.__mro__ if base.__module__.split(".")[0] == "verl"]


def ours(cls: type) -> dict[type, str]:
    """A class and its bases that are ours → their file below the plugin."""
    prefix = "verl_p2r.plugin."
    mine = [base for base in cls.__mro__ if base.__module__.startswith(prefix)]
    return {base: base.__module__.removeprefix(prefix).replace(".", "/") + ".py" for base in mine}


def written_in(value: object, file: str) -> bool:
    """Whether a class's attribute is a method of that file, which a dataclass's own methods are not."""
    code = getattr(inspect.unwrap(getattr(value, "__func__", value)), "__code__", None)
    return code is not None and code.co_filename == str(PLUGIN / file)


def test_every_overridden_method_is_in_the_table():
    listed = {(hook.file, hook.name.rpartition(".")[2]) for hook in HOOKS if hook.kind == "overrides"}
    overridden = {
        (file, name)
        for cls in our_classes()
        for base, file in ours(cls).items()
        for name, value in vars(base).items()
        if written_in(value, file) and any(name in vars(their) for their in theirs(cls))
    }
    assert len(overridden) > 40
    assert overridden - listed == set()


def test_every_attribute_that_our_classes_take_from_verls_is_in_the_table():
    listed = {(hook.file, hook.name.rpartition(".")[2]) for hook in HOOKS if hook.kind != "uses"}
    read = set()
    for cls in our_classes():
        known = {
            name
            for base in ours(cls)
            for name in (*vars(base), *vars(base).get("__annotations__", {}), *hooks._set_on_self(base))
        }
        for base, file in ours(cls).items():
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
                mine = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
                if mine and node.attr not in known:
                    read.add((file, node.attr))
    assert len(read) > 40
    assert read - listed == set()


def test_every_registration_is_in_the_table():
    loaded = {entry.file: entry.loaded_by for entry in TABLE}
    for door, ours in REGISTRATIONS.items():
        assert loaded[ours.removeprefix("verl_p2r.plugin.").replace(".", "/") + ".py"] == door


def test_every_file_of_the_table_exists_and_has_a_purpose():
    for entry in TABLE:
        assert (PLUGIN / entry.file).is_file()
        assert entry.purpose
        assert entry.hooks


def test_signatures_are_described_with_defaults_and_stars():
    def function(a, b=1, *, c, d=2, **rest): ...

    class Owner:
        @classmethod
        def method(cls, *parts, key=None): ...

    assert describe(function) == "(a, b=…, *, c, d=…, **rest)"
    assert describe(vars(Owner)["method"]) == "(cls, *parts, key=…)"
    assert (describe(Owner), describe(ast), describe(3)) == ("class", "module", "value")


class Newer:
    """Stands in for a class of a newer verl."""

    def __init__(self):
        self.kept = 1

    def step(self, metrics, timing): ...


@pytest.mark.parametrize(
    ("kind", "name", "needs", "change"),
    [
        ("overrides", "Newer.step", "(self, metrics, timing)", ""),
        ("overrides", "Newer.step", "(self, metrics)", "is (self, metrics, timing), and we need (self, metrics)"),
        ("overrides", "Newer.gone", "(self)", "is gone"),
        ("uses", "Newer", "class", ""),
        ("reads", "Newer.kept", "attribute", ""),
        ("reads", "Newer.lost", "attribute", "no longer sets lost"),
        ("reads", "Gone.lost", "attribute", "is gone"),
    ],
)
def test_a_change_is_named(kind, name, needs, change):
    found = change_of(Hook("rl/trainer.py", kind, f"{__name__}.{name}", needs))
    assert change in found
    assert bool(found) is bool(change)


def test_a_module_that_is_gone_is_named_and_an_import_error_inside_one_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    gone = change_of(Hook("a.py", "uses", "no_such_package.name", "()"))
    assert gone == "no_such_package.name is gone: No module named 'no_such_package'"
    broken = change_of(Hook("a.py", "uses", "half_installed.name", "()"))
    assert broken == "half_installed.name is gone: No module named 'no_such_library'"


@pytest.mark.slow
def test_the_fresh_process_finds_every_hook_as_needed():
    checked = hooks.check_hooks_in_fresh_process()
    assert [(one.file, one.count) for one in checked] == [(entry.file, len(entry.hooks)) for entry in TABLE]
    assert [text for one in checked for text in one.changed] == []


def test_a_fresh_process_that_fails_is_an_error_with_its_last_line(monkeypatch):
    done = SimpleNamespace(stdout="", stderr="Traceback\nImportError: no verl\n")
    monkeypatch.setattr(hooks.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(RuntimeError, match="ImportError: no verl"):
        hooks.check_hooks_in_fresh_process()


@pytest.mark.slow
@pytest.mark.skipif(not no_gpu.cpu_build(), reason="verl can be imported without a GPU by a GPU build of torch")
def test_without_a_gpu_and_a_platform_the_check_names_the_setting_and_no_hook(monkeypatch):
    monkeypatch.delenv("VERL_PLATFORM")
    with pytest.raises(RuntimeError, match=re.escape(no_gpu.MESSAGE)):
        hooks.check_hooks_in_fresh_process()


def test_the_command_lists_files_and_changes(monkeypatch, capsys):
    changed = Checked("rl/trainer.py", 3, ("verl.x is gone: No module named 'verl.x'",))
    monkeypatch.setattr(hooks, "check_hooks", lambda: [Checked("rl/advantage.py", 1, ()), changed])
    assert hooks.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "rl/advantage.py: 1 of 1 hooks as needed",
        "rl/trainer.py: 2 of 3 hooks as needed",
        "  verl.x is gone: No module named 'verl.x'",
    ]
