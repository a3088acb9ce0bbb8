# SPDX-License-Identifier: Apache-2.0
"""The template of a self-contained HTML page, whose security policy names its own script and style by their hashes."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files as resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template


def page_template(package: str, name: str, filters: Mapping[str, Callable[..., Any]] | None = None) -> Template:
    """Load the template of a page. All texts are escaped, and an unknown name is an error.

    Args:
        package: package that the template lies in.
        name: its file.
        filters: the template's filters, besides `csp` for its security policy.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"csp": _csp, **(filters or {})}
    return environment.from_string(resources(package).joinpath(name).read_text(encoding="utf-8"))


def _csp(text: str) -> str:
    """Return the name of a script or style in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
