# SPDX-License-Identifier: Apache-2.0
"""One question about one image or video, validated: what every file of JSON records is read as.

    JSON of Video-R1, of the VideoP2R release (every value a text in its RL file), or our own  →  Record

The data tools pass records from step to step. The datasets of a run turn them into verl's columns (`data.columns`). No
text is ever evaluated.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from verl_p2r.accuracy import answer_accuracy, answer_text, is_problem_type, problem_types
from verl_p2r.data.elements import KINDS, MediaSources, read_element
from verl_p2r.data.errors import RowError
from verl_p2r.data.fields import bool_of, facts_of, float_of, media_of, name_of, options_of, required_text, text_of
from verl_p2r.data.messages import PLACEHOLDER
from verl_p2r.data.responses import response_of
from verl_p2r.data.truths import AGREEMENT, check_truth
from verl_p2r.data.values import check_values, shown

OUTSIDE_VARIABLE = "VERL_P2R_ALLOW_OUTSIDE_MEDIA_ROOT"
"""Environment variable: set to 1, it lets symbolic links lead out of the data tools' media root."""


class Medium(NamedTuple):
    """The file a record is about, or a part of it. Two media are equal when a model sees the same.

    Args:
        kind: `image` or `video`.
        path: as in `Record.path`.
        rules: the items of `Record.media`, sorted.
    """

    kind: str
    path: str
    rules: tuple[tuple[str, Any], ...] = ()

    def element(self, root: Path) -> dict[str, Any]:
        """Return the medium as a canonical element, see `verl_p2r.data.elements`.

        Args:
            root: the folder that the path is relative to.

        Raises:
            RowError: symbolic links lead out of the folder, and `VERL_P2R_ALLOW_OUTSIDE_MEDIA_ROOT` is not 1.

        >>> Medium("video", "STAR/a.mp4", (("fps", 1.0),)).element(Path("/data"))
        {'type': 'video', 'video': '/data/STAR/a.mp4', 'fps': 1.0}
        """
        allowed = os.environ.get(OUTSIDE_VARIABLE, "0") not in ("", "0")
        sources = MediaSources(str(root), allowed, outside_setting=f"{OUTSIDE_VARIABLE}=1")
        return read_element({self.kind: self.path, **dict(self.rules)}, self.kind, "path", sources)


@dataclass(frozen=True)
class Record:
    """One question about one medium, with the response to it if there is one.

    Args:
        problem_id: unique in a data set.
        problem: the question, without its options.
        problem_type: one of `accuracy.problem_types()`.
        data_type: `image` or `video`.
        path: path of the medium.
        solution: the correct answer, with or without its `<answer>` tags.
        options: options of a multiple choice question.
        data_source: where the record comes from; by default the first folder of the path.
        answer: the solution again, as the release repeats it.
        observation: observation of the response; see `response`.
        process: thinking of the response, or the whole response.
        output: the whole response.
        reward: accuracy of the response, in [0, 1].
        select: whether the response was kept.
        media: sampling and sizing rules of this medium alone, see `fields.media_of`.
        facts: what an observation must state, for the judge `facts`, see `fields.facts_of`.
        extra: all other fields of the JSON object, unchanged.
        file: file the record was read from.
        line: line of that file, from 1.
    """

    problem_id: str
    problem: str
    problem_type: str
    data_type: str
    path: str
    solution: str
    options: tuple[str, ...] = ()
    data_source: str = ""
    answer: str | None = None
    observation: str | None = None
    process: str | None = None
    output: str | None = None
    reward: float | None = None
    select: bool | None = None
    media: Mapping[str, Any] = field(default_factory=dict)
    facts: Sequence[Mapping[str, Any]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    file: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)

    @classmethod
    def parse(cls, raw: Any, *, file: str = "", line: int = 0, index: int = 0, relative_path: bool = True) -> "Record":
        """Validate a JSON value.

        Args:
            raw: the value; inside it, lists, numbers and truth values may be written as text, Python's or JSON's way. A
                `RowError` in its place is raised.
            file: file it was read from.
            line: line of that file, from 1.
            index: number of the value in its input, from 0; the `problem_id` of a record without one.
            relative_path: refuse a path that is not relative or contains `..`, and shorten it. The datasets of a run
                pass False, because `data.p2r.media_root` decides there.

        Edge rules [ours]:
            Fields that are missing, empty, `None`, `null` or `nan` are not set. A numeric `solution` becomes text. A
            solution that no answer can match is refused, see `truths.check_truth`. `answer` may differ from `solution`
            as far as the paper's 0.6 of accuracy allows.

        Raises:
            RowError: a required field is missing, or a field has a wrong value.

        >>> Record.parse({"problem": "How many?", "problem_type": "numerical", "data_type": "video", "options": "[]",
        ...               "path": "./STAR/a.mp4", "solution": "<answer>3</answer>", "select": "True"}).path
        'STAR/a.mp4'
        """
        if isinstance(raw, RowError):
            raise raw
        if not isinstance(raw, Mapping):
            raise RowError("", "unreadable record", f"the record is a {type(raw).__name__}: it must be a JSON object")
        check_values(raw)
        problem, problem_type, data_type = required_text(raw, "problem"), *_kinds_of(raw)
        path, solution = required_text(raw, "path"), required_text(raw, "solution")
        record = cls(
            problem_id=(name_of(raw, "problem_id") or "").strip() or str(index),
            problem=problem,
            problem_type=problem_type,
            data_type=data_type,
            path=_relative(path) if relative_path else path,
            solution=solution,
            options=tuple(options_of(raw.get("options"))),
            data_source=(name_of(raw, "data_source") or "").strip() or _first_folder(path),
            answer=text_of(raw, "answer"),
            observation=text_of(raw, "observation"),
            process=text_of(raw, "process"),
            output=text_of(raw, "output"),
            reward=float_of(raw, "reward"),
            select=bool_of(raw, "select"),
            media=media_of(raw.get("media"), data_type),
            facts=tuple(facts_of(raw.get("facts")) or ()),
            extra={name: value for name, value in raw.items() if name not in _OWN},
            file=file,
            line=line,
        )
        check_truth(problem_type, solution, record.options)
        record._check_answer()
        return record

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object: the fields that are set, and `extra`."""
        own = {name: value for name, value in vars(self).items() if value is not None and name in _OWN}
        own["options"] = list(self.options)
        for name in ("media", "facts"):
            if not own[name]:
                del own[name]
        return own | dict(self.extra)

    @cached_property
    def identity(self) -> bytes:
        """SHA-256 of the question and its medium: the same in each step, whatever the response and the other fields.

        Replies are stored under it, and the lists of rejected and dropped records repeat it.
        """
        own = (
            *(self.problem_id, self.problem_type, self.problem, self.options, self.solution),
            *(self.data_type, self.path, dict(self.media), list(self.facts)),
        )
        return hashlib.sha256(json.dumps(own).encode()).digest()

    @cached_property
    def question(self) -> str:
        """The question as the model reads it: `problem`, then for multiple choice `Options:` and one option a line.

        This is Video-R1's assembly. Edge rules [ours]: placeholders of media inside the text are removed, because verl
        would replace them by media. Options without letters are not listed again where the problem ends with them, one
        a line after `A. `, `B. ` and so on.
        """
        text = self.problem
        if self.problem_type == "multiple choice" and self.options and not self._lists_options():
            text += "Options:\n" + "".join(f"{option}\n" for option in self.options)
        return PLACEHOLDER.sub("", text)

    @property
    def response(self) -> str | None:
        """The response in the template, or None; see `verl_p2r.data.responses.response_of`."""
        return response_of(self.output, self.process, self.observation, self.solution)

    @property
    def medium(self) -> Medium:
        """The medium with its rules."""
        return Medium(self.data_type, self.path, tuple(sorted(self.media.items())))

    def _lists_options(self) -> bool:
        """Whether the problem ends with the options, one a line after its letter."""
        return self.problem.endswith("".join(f"\n{chr(65 + i)}. {option}" for i, option in enumerate(self.options)))

    def _check_answer(self) -> None:
        """Refuse a record whose `answer` contradicts its `solution`."""
        if self.answer is None:
            return
        answer, solution = answer_text(self.answer), answer_text(self.solution)
        if answer.casefold() == solution.casefold():
            return
        if answer_accuracy(self.problem_type, answer, solution, options=self.options) < AGREEMENT:
            raise RowError(
                "answer",
                "conflicting answers",
                f"field answer is {shown(answer, 80)} but solution is {shown(solution, 80)}: correct one of them, or "
                "drop the record",
            )


_OWN = frozenset(Record.__dataclass_fields__) - {"extra", "file", "line"}
_DRIVE_OR_DATA = re.compile(r"(?i).:|data:")  # `C:` of Windows, or a data: URL


def _kinds_of(raw: Mapping[str, Any]) -> tuple[str, str]:
    """Read `problem_type` and `data_type`."""
    problem_type, data_type = raw.get("problem_type"), raw.get("data_type")
    if not is_problem_type(problem_type):
        raise RowError(
            "problem_type",
            "unknown problem type",
            f"field problem_type is {shown(problem_type)}: give one of {', '.join(problem_types())}",
        )
    if data_type not in KINDS:
        raise RowError(
            "data_type", "unknown data type", f"field data_type is {shown(data_type)}: give {' or '.join(KINDS)}"
        )
    return problem_type, data_type


def _relative(path: str) -> str:
    """Check that a path stays below the media root, and return its shortest form."""
    path = path.strip()
    parts = [part for part in path.split("/") if part not in ("", ".")]
    foreign = "\\" in path or "://" in path or "\0" in path or _DRIVE_OR_DATA.match(path)
    if ".." in parts or path.startswith(("/", "~")) or foreign or not parts:
        raise RowError(
            "path",
            "unsafe path",
            f"field path is {shown(path, 80)}: give a path relative to the folder of the media, without '..', with '/'",
        )
    return "/".join(parts)


def _first_folder(path: str) -> str:
    return next((part for part in path.split("/")[:-1] if part not in ("", ".", "..")), "unknown")
