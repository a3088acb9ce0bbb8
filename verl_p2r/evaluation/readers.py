# SPDX-License-Identifier: Apache-2.0
"""How published evaluation codes read a reply: each reader scores one answer in [0, 1].

A protocol names a reader for each benchmark. `lenient` is the reader of training's rewards.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from verl_p2r.accuracy import answer_accuracy, answer_text
from verl_p2r.answers.numbers import read_number
from verl_p2r.answers.options import LETTERS, Options, read_place
from verl_p2r.evaluation.mmmu import choice_letter, open_answer_matches
from verl_p2r.evaluation.relative_accuracy import mean_relative_accuracy

_TAGS = ("<observation>", "<think>", "<answer>")
_PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is"),
    *("The correct option is", "Best answer:", "Best option:"),
)
_LETTER = re.compile("[ABCD]")


@dataclass(frozen=True)
class Reply:
    """A reply as readers get it.

    Args:
        text: all of it, stripped.
        answer: the first `<answer>` block as published codes see it, or else the whole reply.
    """

    text: str
    answer: str

    @classmethod
    def of(cls, response: str) -> "Reply":
        """Read a response."""
        return cls(response.strip(), answer_text(response))


@dataclass(frozen=True)
class Question:
    """What a reader knows of a question.

    Args:
        problem_type: one of `accuracy.PROBLEM_TYPES`.
        solution: the true answer, without tags.
        options: options of a multiple choice question.
        inclusive: which form of mean relative accuracy counts, see `mean_relative_accuracy`.
    """

    problem_type: str
    solution: str
    options: tuple[str, ...]
    inclusive: bool

    @property
    def is_plain(self) -> bool:
        """Whether the solution is a letter and the options are lettered A, B, C, … in order."""
        return (
            len(self.solution) == 1
            and self.solution in LETTERS[: len(self.options)]
            and all(option.startswith(f"{letter}. ") for option, letter in zip(self.options, LETTERS, strict=False))
        )

    @property
    def letter(self) -> str:
        """The letter of the correct option; empty when the solution names none."""
        place = read_place(self.solution, Options.read(self.options))
        return LETTERS[place] if place is not None and place < len(LETTERS) else ""


def lenient(reply: Reply, question: Question) -> float:
    """Score as training's lenient accuracy does, numbers by mean relative accuracy [ours].

    A reply that began the template but has no complete answer block has no answer: it was cut off, and a letter in its
    thinking is not an answer. A reply without any of the template's tags is an answer as a whole.
    """
    answer = reply.answer
    if answer == reply.text and any(tag in answer for tag in _TAGS):
        return 0.0
    if question.problem_type == "multiple choice" and question.is_plain and answer in LETTERS and len(answer) == 1:
        return float(answer == question.solution)  # the most frequent case, without reading either side
    if question.problem_type == "regression":
        return _relative(read_number(answer), read_number(question.solution), question.inclusive)
    return answer_accuracy(question.problem_type, answer, question.solution, options=question.options)


def video_r1(reply: Reply, question: Question) -> float:
    """Score as Video-R1's `eval_bench.py`: equal texts, equal rounded numbers, mean relative accuracy."""
    answer = reply.answer
    if question.problem_type == "regression":
        return _relative(_float(answer), _float(question.solution), question.inclusive)
    if question.problem_type == "multiple choice":
        return float(answer == question.solution != "")
    return answer_accuracy(question.problem_type, answer, question.solution, strict=True)


def first_word(reply: Reply, question: Question) -> float:
    """Score as VSI-Bench: the first blank-separated word without its full stop; letters without case."""
    word = reply.answer.split(" ")[0].rstrip(".").strip()
    if question.problem_type == "regression":
        return _relative(_float(word), _float(question.solution), question.inclusive)
    return float(word.lower() == question.letter.lower() != "")


def mmmu(reply: Reply, question: Question) -> float:
    """Score as MMMU and VideoMMMU: see `evaluation.mmmu`."""
    answer = reply.answer
    if question.problem_type == "multiple choice":
        return float(choice_letter(answer, question.options) == question.letter)
    return float(open_answer_matches(answer, question.solution))


def first_letter(reply: Reply, question: Question) -> float:
    """Score as Video-MME: the first A, B, C or D behind a known announcement."""
    answer = reply.answer
    for prefix in _PREFIXES:
        answer = answer.replace(prefix, "")
    found = _LETTER.search(answer)
    return float(found is not None and found[0] == question.letter)


def start_of_reply(reply: Reply, question: Question) -> float:
    """Score as TempCompass without its judge: an option's text; at the start its letter (`A`, `A.`, `A)`), yes or no.

    A reply that none of its rules can read scores 0, as with its option `--disable_llm`.
    """
    answer = reply.answer
    known = Options.read(question.options)
    correct = read_place(question.solution, known)
    if correct is None:
        return 0.0
    texts = [text.casefold() for text in known.texts]
    if sorted(texts) == ["no", "yes"]:
        for word in ("yes", "no"):
            if answer.lower().startswith(word):
                return float(texts[correct] == word)
    if answer in known.texts or answer in question.options:
        return float(answer in (known.texts[correct], question.options[correct]))
    letter = answer[:1] if answer[1:2] in ("", ".", ")") else ""
    return float(letter == question.letter != "")


def _relative(prediction: float | None, truth: float | None, inclusive: bool) -> float:
    if prediction is None or truth is None:
        return 0.0
    return mean_relative_accuracy(prediction, truth, inclusive=inclusive)


def _float(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


Reader = Callable[[Reply, Question], float]
READERS: Mapping[str, Reader] = {
    function.__name__: function for function in (lenient, video_r1, first_word, mmmu, first_letter, start_of_reply)
}
"""Every reader by its name in a protocol."""


def texts_of(options: Sequence[object] | None) -> tuple[str, ...]:
    """A record's options as texts; none for None."""
    return tuple(map(str, options)) if options is not None else ()
