# SPDX-License-Identifier: Apache-2.0
"""The template of a prompt: a text file with slots."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from verl_p2r.accuracy import PROBLEM_TYPES, problem_types

_SLOT = re.compile(r"\{(question|answer_form)\}")


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with slots for the question and for the form of the answer.

    Args:
        body: text with the slot `{question}` and, optionally, `{answer_form}`; other braces are kept.
        answer_forms: problem type → text for `{answer_form}`.
    """

    body: str
    answer_forms: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, name: str = "prompt template") -> "PromptTemplate":
        """Read a template: the body, followed by a section for each problem type, headed by its name in brackets.

        A registered problem type may go without a section; its `{answer_form}` is then empty.

        Args:
            text: content of the file.
            name: name of the template in messages.

        Raises:
            ValueError: the body lacks `{question}`, or uses `{answer_form}` without a section for every problem type.

        >>> template = PromptTemplate.parse("{question} {answer_form}\\n[numerical]\\nA number.\\n[OCR]\\nText.\\n"
        ...     "[multiple choice]\\nA letter.\\n[free-form]\\nText.\\n[regression]\\nA number.\\n")
        >>> template.render("How many?", "numerical")
        'How many? A number.'
        """
        heads = "|".join(map(re.escape, problem_types()))
        body, *sections = re.split(rf"^\[({heads})\]\s*$", text, flags=re.MULTILINE)
        forms = {kind: form.strip() for kind, form in zip(sections[::2], sections[1::2], strict=True)}
        slots = set(_SLOT.findall(body))
        if "question" not in slots:
            raise ValueError(f"{name} lacks {{question}}: add it where the question belongs")
        missing = [kind for kind in PROBLEM_TYPES if not forms.get(kind)] if "answer_form" in slots else []
        if missing:
            heads = ", ".join(f"[{kind}]" for kind in missing)
            raise ValueError(f"{name} uses {{answer_form}} but has no text under {heads}: add each as a section")
        return cls(body.strip(), forms)

    @classmethod
    def load(cls, name: str) -> "PromptTemplate":
        """Read a template file.

        Args:
            name: one of the package's templates (`process_aware`), or the path of a text file.

        Raises:
            ValueError: there is no such template, or it lacks a slot or a section.
        """
        own = files("verl_p2r").joinpath(f"prompts/{name}.txt")
        path = own if own.is_file() else Path(name).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ValueError(
                f"prompt template {name!r} cannot be read ({why}): name a text file, or process_aware"
            ) from error
        return cls.parse(text, f"prompt template {name}")

    def render(self, question: str, problem_type: str) -> str:
        """Return the text of the user's turn, which follows the media."""
        values = {"question": question, "answer_form": self.answer_forms.get(problem_type, "")}
        return _SLOT.sub(
            lambda match: values[match[1]], self.body
        )  # in one pass, so that a slot inside the question stays text
