# SPDX-License-Identifier: Apache-2.0
"""The documentation against the code: generated references, the README's length and links, a rollout's numbers."""

import re
import sys

import pytest
import torch
import yaml
from paths import ROOT

DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "hooks"))

import history  # noqa: E402
import reference  # noqa: E402

from verl_p2r.advantages import pa_grpo_advantages  # noqa: E402


class _Loader(yaml.SafeLoader):
    """Ignores the custom tags that mkdocs.yml may contain."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def pages_in(nav) -> list[str]:
    """Every page of a navigation tree."""
    if isinstance(nav, str):
        return [nav]
    children = nav if isinstance(nav, list) else nav.values()
    return [page for child in children for page in pages_in(child)]


def test_readme_has_at_most_120_lines_and_both_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert "make quickstart" in text
    assert "make test" in text


def test_every_readme_link_points_to_existing_file_and_heading():
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        assert (ROOT / path).is_file(), target
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w]+", "-", h.lower()).strip("-") for h in headings}, target


def test_navigation_lists_exactly_the_existing_pages():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)
    listed = [page for page in pages_in(config["nav"]) if page != "reference/api/"]
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if not path.name.startswith("_")}
    assert sorted(listed) == sorted(written)


def test_the_configuration_reference_shows_each_setting_with_its_default_and_comment(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text(
        "top:\n  one: 1  # the first | of two\n  group:  # holds <more>\n    flow: {a: 1, b: 2}  # tokens\n"
        '    text: "a # b"\n'
    )
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    rows = reference.config("a.yaml").replace("<wbr>", "").splitlines()
    assert rows[2:] == [
        "| <code>top.one</code> | <code>1</code> | the first \\| of two |",
        "| <code>top.group</code> |  | holds &lt;more&gt; |",
        "| <code>top.group.flow</code> | <code>{a: 1, b: 2}</code> | tokens |",
        '| <code>top.group.text</code> | <code>"a # b"</code> |  |',
    ]


def test_config_reference_shows_every_key_of_ppo_yaml():
    shown = reference.config("verl_p2r/config/p2r/ppo.yaml").replace("<wbr>", "")
    loaded = yaml.safe_load((ROOT / "verl_p2r/config/p2r/ppo.yaml").read_text(encoding="utf-8"))

    def leaves(node, path=()):
        if isinstance(node, dict) and node:
            for key, value in node.items():
                yield from leaves(value, (*path, key))
        else:
            yield ".".join(path)

    keys = re.findall(r"^\| <code>([^<]*)</code>", shown, re.MULTILINE)
    for leaf in leaves(loaded):
        assert any(leaf == key or leaf.startswith(f"{key}.") for key in keys), leaf


@pytest.mark.parametrize("name", list(reference.COMMANDS))
def test_the_command_reference_describes_every_command(name):
    import importlib

    import typer

    text = reference.command(name)
    for command in typer.main.get_command(importlib.import_module(reference.COMMANDS[name]).app).commands:
        assert f"### `{name} {command}`" in text


def test_reject_reasons_are_found_in_every_way_of_raising_them(tmp_path, monkeypatch):
    (tmp_path / "verl_p2r").mkdir()
    (tmp_path / "verl_p2r" / "a.py").write_text(
        'KIND = "by name"\n'
        'raise RowError("path", "plain", f"field {x} <is> bad")\n'
        'raise Dropped("a.b", "one" if x else "other", "y")\n'
        'self.error(field, KIND, "z")\n'
        'other("path", "not a reason", "q")\n'
    )
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    rows = reference.reject_reasons().replace("<wbr>", "").splitlines()[2:]
    assert rows == [
        "| by name |  | z |",
        "| one | <code>a.b</code> | y |",
        "| other | <code>a.b</code> | y |",
        "| plain | <code>path</code> | field … &lt;is&gt; bad |",
    ]


def test_reject_reason_page_lists_reasons_of_the_package():
    text = reference.reject_reasons()
    for reason in ("unknown problem type", "no ground truth", "missing file", "over-long", "placeholders"):
        assert f"\n| {reason} |" in text


def test_the_table_of_hooks_shows_every_hook():
    from verl_p2r.plugin.hooks import hook_table

    text = reference.verl_hooks().replace("<wbr>", "")
    for entry in hook_table():
        section = text.split(f"### `{entry.file}`\n")[1].split("\n### ")[0]
        for hook in entry.hooks:
            owner, _, name = hook.name.rpartition(".")
            row = (
                (f"<code>{owner}</code>", f"<code>{name}</code>")
                if hook.kind == "reads"
                else (f"<code>{hook.name}</code>", f"<code>{hook.needs}</code>")
            )
            assert any(all(cell in line for cell in row) for line in section.splitlines()), hook


def test_the_api_reference_has_a_page_for_every_public_symbol():
    shown = {line.removeprefix("::: ") for page in reference.api_pages().values() for line in page.splitlines()}
    symbols = reference.public_symbols()
    assert {"verl_p2r.advantages.pa_grpo_advantages", "verl_p2r.template.parse_response"} <= symbols
    for symbol in symbols:
        assert symbol.rsplit(".", 1)[0] in shown, symbol


def test_benchmark_history_has_row_per_run_and_plot():
    runs = history.runs()
    assert len(history.table().splitlines()) == 2 + len(runs)
    assert history.plot().startswith("![Figures over recorded runs](data:image/svg+xml;base64,")


def test_advantages_of_documented_rollouts_follow_from_their_rewards():
    """The table in start/quickstart.md is a whole group, whose rewards give its advantages; the README shows a part."""
    section = (DOCS / "start" / "quickstart.md").read_text(encoding="utf-8").split("## One real rollout")[1]
    rows = [
        [cell.strip().strip("*").replace("−", "-") for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.count(" · ") == 2 and "observation" not in line
    ]
    assert len(rows) == 8
    perception, reasoning, p_shown, r_shown, grpo = (torch.tensor([float(r[k]) for r in rows]) for k in range(2, 7))
    mask = torch.ones(8, 2, dtype=torch.long)  # one perception token, one reasoning token
    ours = pa_grpo_advantages(perception, reasoning, torch.ones(8, dtype=torch.long), mask, ["a"] * 8)
    total = perception + reasoning
    assert torch.allclose(ours[:, 0], p_shown, atol=0.005)
    assert torch.allclose(ours[:, 1], r_shown, atol=0.005)
    assert torch.allclose((total - total.mean()) / (total.std() + 1e-6), grpo, atol=0.005)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(
        r"^\| \**(a .*?)\** \| .* \| \**(.*?)\** \| \**(.*?)\** \| \**(.*?)\** \| \**(.*?)\** \|$", readme, re.MULTILINE
    )
    assert len(shown) == 4
    for observation, *numbers in shown:
        matching = [row for row in rows if observation in row[0]]
        assert [number.replace("−", "-") for number in numbers] in [row[2:6] for row in matching]
