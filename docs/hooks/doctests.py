# SPDX-License-Identifier: Apache-2.0
"""Shows doctests inside docstrings as code: Markdown would read `>>>` as a quotation."""

import griffe


class Doctests(griffe.Extension):
    """Puts each block that starts with `>>>` into a fence."""

    def on_object(self, *, obj, **_) -> None:
        """Edit one object's docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """Fence each paragraph that starts with `>>>`; paragraphs in a row share one fence.

    >>> fenced("Adds.\\n\\n>>> 1 + 1\\n2")
    'Adds.\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```'
    """
    parts: list[str] = []
    for paragraph in text.split("\n\n"):
        if not paragraph.startswith(">>> "):
            parts.append(paragraph)
        elif parts and parts[-1].endswith("\n```"):
            parts[-1] = f"{parts[-1].removesuffix('```')}\n{paragraph}\n```"
        else:
            parts.append(f"```pycon\n{paragraph}\n```")
    return "\n\n".join(parts)
