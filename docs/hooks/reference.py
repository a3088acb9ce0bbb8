# SPDX-License-Identifier: Apache-2.0
"""The reference pages, made from the code: configuration, commands, metrics, hooks into verl, reject reasons, API.

Each function returns Markdown. Nothing here needs mkdocs, so tests call the same functions.
"""

import ast
import html
import importlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("verl_p2r", "data_tools")
COMMANDS = {
    "verl-p2r": "verl_p2r.plugin.cli",
    "verl-p2r-data": "data_tools.cli",
    "verl-p2r-eval": "data_tools.evaluate.cli",
}
METRICS = "verl_p2r.plugin.rl.metrics"
ATTACKS = "tests/cases/gaming.json"
SHOWN = 120  # characters of an attack's text
_ONLY = {"judge": "**only a model judge**: ", "visual": "**only `visual`**: ", "nothing": "**nothing**: "}


def config(file: str) -> str:
    """One of our YAML files as a table of dotted key, default and comment.

    Args:
        file: its path below the repository's root.
    """
    text = (ROOT / file).read_text(encoding="utf-8")
    rows = [f"| {_code(key)} | {_code(value)} | {_cell(comment)} |" for key, value, comment in _settings(text)]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _settings(text: str) -> Iterator[tuple[str, str, str]]:
    """Dotted key, value as written and comment of each setting; a group is listed only if it has a comment."""
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from _settings_below(root, text, ())


def _settings_below(node: yaml.MappingNode, text: str, path: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        here = (*path, key.value)
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            if comment := _comment_after(text, key.end_mark.index):
                yield ".".join(here), "", comment
            yield from _settings_below(value, text, here)
        else:
            end = value.end_mark.index
            yield ".".join(here), text[value.start_mark.index : end].strip(), _comment_after(text, end)


def _comment_after(text: str, position: int) -> str:
    """The comment on the rest of a line."""
    found = re.match(r"[^\n#]*#\s*(.*)", text[position:])
    return found[1] if found else ""


def _code(text: str) -> str:
    """A name or value as code that may break behind its dots, underscores and commas, on narrow screens."""
    breakable = re.sub("([._,/:])", r"\1<wbr>", html.escape(text, quote=False))
    return f"<code>{breakable}</code>" if text else ""


def _cell(text: str) -> str:
    """A text as the cell of a table; only its backticks are Markdown."""
    parts = text.replace("|", "\\|").split("`")
    plain = [html.escape(part, quote=False).replace("{", "&#123;").replace("*", "&#42;") for part in parts[::2]]
    code = [f"`{part}`" for part in parts[1::2]]
    return "".join(a + b for a, b in zip_longest(plain, code, fillvalue=""))


def command(name: str) -> str:
    """A command's reference, as typer writes it.

    Args:
        name: one of `COMMANDS`.
    """
    import typer
    from typer.cli import get_docs_for_click

    app = typer.main.get_command(importlib.import_module(COMMANDS[name]).app)
    text = get_docs_for_click(obj=app, ctx=typer.Context(app, info_name=name), name=name, indent=1)
    return re.sub(r"\[default: ([^\]]*)\]", r"[default: `\1`]", text).strip()


def metrics() -> str:
    """Each metric that training logs and what it means."""
    table = importlib.import_module(METRICS).METRICS
    return "\n".join(
        ["| metric | meaning |", "|---|---|", *(f"| {_code(name)} | {_cell(text)} |" for name, text in table.items())]
    )


def verl_hooks() -> str:
    """Each file of ours that touches verl: what for, what loads it, and what it needs of verl."""
    from verl_p2r.plugin.hooks import hook_table

    lines = []
    for entry in hook_table():
        loaded = f" Loaded by: {entry.loaded_by}." if entry.loaded_by else ""
        purpose = f"{entry.purpose[0].upper()}{entry.purpose[1:]}."
        lines += [f"### `{entry.file}`", "", _cell(purpose + loaded), "", "| | in verl | needs |", "|---|---|---|"]
        read: dict[str, list[str]] = defaultdict(list)
        for hook in entry.hooks:
            owner, _, name = hook.name.rpartition(".")
            if hook.kind == "reads":
                read[owner].append(name)
            else:
                lines.append(f"| {hook.kind} | {_code(hook.name)} | {_code(hook.needs)} |")
        lines += [f"| reads | {_code(owner)} | {', '.join(map(_code, names))} |" for owner, names in read.items()]
        lines.append("")
    return "\n".join(lines)


def attacks(process: str) -> str:
    """The attacks on one process's reward, what each earns from a judge that believes everything, and what stops it.

    Args:
        process: `perception` or `reasoning`.
    """
    table = json.loads((ROOT / ATTACKS).read_text(encoding="utf-8"))
    column, judged = {"perception": ("believed", ["`facts`"]), "reasoning": ("reasoning", [])}[process]
    titles = ["the policy …", "for example", f"R_{process[0].upper()}", *judged, "what stops it"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in table["attacks"]:
        if row["process"] != process and row is not table["attacks"][0]:
            continue
        earned = " + ".join(f"{part:g}" for part in row[column])
        stop = f"{_ONLY.get(row.get('only'), '')}{_cell(row['stopped_by'])}"
        cells = [_cell(row["attack"]), _example(row, process), earned, *([row["facts"]] if judged else []), stop]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _example(row: dict[str, Any], process: str) -> str:
    """What an attack writes, as code; invisible characters are shown by their numbers."""
    parts = ["response", "observation"] if process == "perception" else ["response", "answer", "think"]
    text = next((row[part] for part in parts if part in row), "")
    if not isinstance(text, str):
        text = f"{text['repeat'] * 2}… {text.get('then', '')}"
    shown = "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) == "Cf" or c == "\u3164" else c for c in text)
    shown = re.sub(r"\s+", " ", shown).strip()
    return _code(shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…").replace("|", "&#124;")


def reject_reasons() -> str:
    """Each short reason for which a row or record is left out, the field at fault and the message."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path in _sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _is_reject(node):
                field, reason, problem = node.args[:3]
                for text in _texts(reason, names):
                    found[text].add((_first(field, names), _first(problem, names)))
    lines = ["| reason | field | message |", "|---|---|---|"]
    for reason, places in sorted(found.items()):
        for field, problem in sorted(places):
            lines.append(f"| {_cell(reason)} | {_code(field)} | {_cell(problem)} |")
    return "\n".join(lines)


def _sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _is_reject(call: ast.Call) -> bool:
    """Whether a call makes a row's error from field, reason and problem."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in ("RowError", "Dropped", "error") and len(call.args) >= 3


def _texts(node: ast.expr, names: dict[str, ast.expr]) -> list[str]:
    """The texts an expression may stand for; what is computed shows as `…`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, names), *_texts(node.orelse, names)]
    if isinstance(node, ast.BinOp):
        return [a + b for a in _texts(node.left, names) for b in _texts(node.right, names)]
    if isinstance(node, ast.Name) and node.id in names:
        return _texts(names[node.id], {})
    return ["…"]


def _first(node: ast.expr, names: dict[str, ast.expr]) -> str:
    text = _texts(node, names)[0]
    return "" if text == "…" else text


def api_pages() -> dict[str, str]:
    """The API reference: one page for each package, every public module on it.

    Returns:
        Dotted name of the package → Markdown for mkdocstrings.
    """
    pages: dict[str, list[str]] = {}
    for path in _sources():
        module = path.relative_to(ROOT).with_suffix("")
        package = ".".join(module.parent.parts)
        if any(part.startswith("_") and part != "__init__" for part in module.parts):
            continue
        page = pages.setdefault(package, [f"# {package}\n"])
        name = package if module.name == "__init__" else ".".join(module.parts)
        page.append(f"::: {name}\n")
    shown = {symbol.rsplit(".", 2)[0] for symbol in public_symbols()} | {s.rsplit(".", 1)[0] for s in public_symbols()}
    return {package: "\n".join(parts) for package, parts in pages.items() if package in shown}


def public_symbols() -> set[str]:
    """Dotted names of every public function and class at the top of a public module."""
    symbols = set()
    for path in _sources():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if named and not node.name.startswith("_"):
                symbols.add(f"{module}.{node.name}")
    return symbols
