# SPDX-License-Identifier: Apache-2.0
"""The guard against observations that state an answer without evidence, in the forms that models write."""

import html
import re
import unicodedata
from collections.abc import Mapping

from verl_p2r.accuracy import answer_text
from verl_p2r.judge.facts import words

# Words that announce an answer without giving evidence.
_ANNOUNCING = frozenset(
    words(
        """a an the i we it its is are am be was were been will would must should can could may might do does did have
        has had so thus hence therefore because as of to for in on at with if this that these those here and or not nor
        neither but answer answers answered option options choice choices choose chosen select selected pick alternative
        correct correctly right true wrong final solution response reply question clearly definitely obviously certainly
        surely yes no judgement judgment verdict sufficient evidence deduce deduced say said guess bet think believe my
        our me you your what sure certain confident probably likely maybe perhaps indeed best fits fitting ruled out
        eliminated excluded"""
    ).split()
)
_MEDIA = frozenset(words("video image picture clip frame frames scene observation shows show shown see seen").split())

# "isn't it", "I'd", "that's": the letters of a clitic must not count as an option's letter.
_CLITIC = re.compile(r"(?<=\w)(?:n['’]t|['’](?:s|d|ll|ve|re|m|t))\b", re.IGNORECASE)
_GLUED = re.compile(r"\b(?:the)?(answer|option|choice)(?:is)?(?=[B-HJ-Z]\b)", re.IGNORECASE)
_LATEX = re.compile(r"\\[A-Za-z]{1,20}")
_GO_WITH = re.compile(r"\bgo(?:ing)? (?:with|for)\b", re.IGNORECASE)
_FOOTNOTE = re.compile(r"\[\d{1,3}\]|\b\d{1,3} ?%")
# Chinese is the other main language of judge and policy; whole phrases are matched.
_CHINESE = re.compile("正确|答案|选项|选择|应该|因此|所以|我|选|是|为|的|应|该|就|项")
_OPTION_LINE = re.compile(r"^\s*[(\[]?([A-Za-z])[.):\]]\s*(\S.*)$", re.MULTILINE)

_LOOKALIKES = str.maketrans(
    {
        sign: letter
        for letter, signs in {
            "a": "аαᴀꭺᎪꓮ",
            "b": "вβьʙᏼᏴꓐ",
            "c": "сϲᴄꮯᏟꓚⲥ",
            "d": "ԁᴅꭰᎠꓓ",
            "e": "еεᴇꭼᎬꓰ",
            "f": "ϝꜰꓝ",
            "g": "ɢԍꮐᏀꓖ",
            "h": "нηʜꮋᎻꓧ",
        }.items()
        for sign in signs
    }
)
# Letters in negative circles and squares, and regional indicators, which have no compatibility form.
_ENCLOSED = {first + i: chr(ord("a") + i) for first in (0x1F150, 0x1F170, 0x1F1E6) for i in range(26)}

# "option 2", "answer is number two", "the second option": an option's place, in words as `_plain` returns them.
_NAMED = re.compile(
    r"\b(?:option|choice|answer|alternative|pick|choose|select)"
    r"(?: (?:is|number|no|the|option|choice))* (?P<after>\w+)\b"
    r"|\b(?P<before>\w+) (?:option|choice|answer|alternative|one)\b"
)
_PLACES = tuple(
    zip(
        ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10"),
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"),
        ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th", "10th"),
        ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"),
        strict=True,
    )
)


def states_only_the_answer(question: str, solution: str, observation: str) -> bool:
    """Tell whether an observation contains only an answer: an option's letter, place or text, and announcing words.

    Letters may be enclosed, full-width, or look-alikes from another script. Every option counts, not only the correct
    one, so that listing all of them does not help [ours].

    Args:
        question: The question, options included.
        solution: The ground truth, with or without its `<answer>` tags.
        observation: The text, as `guards.as_data` returns it.

    >>> states_only_the_answer("Which?\\nA. red\\nB. blue", "A", "It's B, isn't it? Option II, I'd say.")
    True
    >>> states_only_the_answer("How many balls?", "3", "I see 3 balls.")
    False
    """
    options = {letter.lower(): _words(text) for letter, text in _OPTION_LINE.findall(question)}
    places = dict(zip(options, _PLACES, strict=False))
    said = {_letter(word) for word in _named_by_place(_plain(observation), places).split()} - _ANNOUNCING
    answers = {*options, *_words(answer_text(solution))}
    letters = {letter for letter in answers if len(letter) == 1}
    # A place counts only with option names: next to an option's words it may be evidence ("the dog barks second").
    names = letters.union(*places.values())
    return said - _MEDIA <= letters or said <= names or said <= answers.union(*options.values())


def _plain(text: str) -> str:
    """Return an observation's words without LaTeX, footnotes and other parts that carry no evidence."""
    text = unicodedata.normalize("NFKC", html.unescape(text).translate(_ENCLOSED))
    for around in (_LATEX, _FOOTNOTE, _CLITIC, _GO_WITH, _CHINESE):
        text = around.sub(" ", text)
    return words(_GLUED.sub(r"\1 ", text))


def _letter(word: str) -> str:
    """Return a word; a single letter that looks like a Latin one becomes that Latin letter."""
    return word.translate(_LOOKALIKES) if len(word) == 1 else word


def _named_by_place(text: str, places: Mapping[str, tuple[str, ...]]) -> str:
    """Replace each option named by its place with that option's letter."""

    def letter(match: re.Match[str]) -> str:
        name = match["after"] or match["before"]
        return next((f" {own} " for own, names in places.items() if name in names), match[0])

    return _NAMED.sub(letter, text)


def _words(text: str) -> list[str]:
    return words(text).split()
