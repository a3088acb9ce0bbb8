# SPDX-License-Identifier: Apache-2.0
"""What mkdocs runs while it builds the site: fills in generated references and checks that nothing public is missing.

A line such as `{{ config verl_p2r/config/p2r/ppo.yaml }}` in a page is replaced by the Markdown that the function of
that name returns.
"""

import re
import sys
import zlib
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import history
import reference

GENERATORS = {
    "config": reference.config,
    "command": reference.command,
    "metrics": reference.metrics,
    "attacks": reference.attacks,
    "reject_reasons": reference.reject_reasons,
    "verl_hooks": reference.verl_hooks,
    "benchmark_history": history.table,
    "benchmark_plot": history.plot,
}
_MARK = re.compile(r"^\{\{ (\w+)(?: (\S+))? \}\}$", re.MULTILINE)


def on_config(config):
    """Put the API pages into the navigation, where it says `API: reference/api/`."""
    pages = [{name: f"reference/api/{name}.md"} for name in reference.api_pages()]
    for section in config["nav"]:
        for entry in section.get("Reference", []):
            if "API" in entry:
                entry["API"] = pages
    return config


def on_files(files: Files, config) -> Files:
    """Add the API pages, which exist only during the build."""
    for name, text in reference.api_pages().items():
        files.append(File.generated(config, f"reference/api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Replace each generator's mark by what it returns."""

    def generated(match: re.Match) -> str:
        name, argument = match.groups()
        if name not in GENERATORS:
            raise PluginError(f"{match[0]}: no such generator; use one of {', '.join(GENERATORS)}")
        return GENERATORS[name](*([argument] if argument else []))

    return _MARK.sub(generated, markdown)


def on_post_build(config) -> None:
    """Fail when a public function or class has no entry in the built API reference."""
    raw = (Path(config["site_dir"]) / "objects.inv").read_bytes()
    listed = zlib.decompress(raw.split(b"\n", 4)[4]).decode()
    shown = {line.split(" ", 1)[0] for line in listed.splitlines()}
    if missing := sorted(reference.public_symbols() - shown):
        raise PluginError(
            f"{len(missing)} public names are missing from the API reference: {', '.join(missing)}. "
            "Give each a docstring, or a name that starts with an underscore"
        )
