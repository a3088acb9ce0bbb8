# SPDX-License-Identifier: Apache-2.0
"""Which option an answer names, by its label, its text or both; an answer that names several names none [ours]."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from verl_p2r.answers.normal import folded, normal
from verl_p2r.answers.option_patterns import ALONE, DENIED, JOINED, LABELLED, NAMING, NOT_AN_ARTICLE
from verl_p2r.visible import is_visible

MAX_CHOICE_LENGTH = 10_000
"""A longer answer names no option, unless it equals the other side exactly, in characters."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ROMAN = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"]

_SEPARATORS = re.compile(r"[,;/|\n()=?!]|[-.] |->|--| or | and | then | vs |或者?|以及|和")
_ARTICLE = re.compile(r"^(?:a|an|the) (?=\S)")
_COMMON = frozenset({"yes", "no", "none", "both", "all", "true", "false", "neither", "either"})


@dataclass(frozen=True)
class Options:
    """The options of one question, prepared for lookups.

    Attributes:
        labels: Each option's own label in upper case; the letters A, B, C, … if the options have no labels.
        texts: Each option's text without its label, as written.
        named: Label → the option's place, from 0; also letters by place if the options' own labels are numbers.
    """

    labels: tuple[str, ...]
    texts: tuple[str, ...]
    named: Mapping[str, int]

    @classmethod
    def read(cls, options: Sequence[object]) -> "Options":
        """Read a question's options: `A. text`, `(1) text`, `iv) text`, `B、text`, `A text`, or plain texts.

        The options' own labels count if every option has one and all differ; otherwise they are A, B, C, … by place.
        If a question's options are unknown, every letter counts as a label.

        Args:
            options: The options; each is converted to a text.

        >>> Options.read(["1. red", "2. blue"]).labels, Options.read(["red", "blue"]).labels
        (('1', '2'), ('A', 'B'))
        """
        return _read_options(tuple(map(str, options)))

    @cached_property
    def folds(self) -> tuple[tuple[str, ...], ...]:
        """The texts in three increasingly folded forms: as written, without markup, without an article."""
        keys = tuple(map(_key, self.texts))
        return tuple(map(_case, self.texts)), keys, tuple(_ARTICLE.sub("", key) for key in keys)

    def place_of(self, name: str) -> int | None:
        """Return the place of the option with this label, or None."""
        return self.named.get(name.upper())

    def places_of_text(self, text: str) -> list[int]:
        """Return the places of the options with this text, comparing the least folded form that matches."""
        key = _key(text)
        bare = key if "\n" in text else _ARTICLE.sub("", key)  # an A on a separate line is a label
        for fold, wanted in zip(self.folds, (_case(text), key, bare), strict=True):
            if wanted and (places := [place for place, own in enumerate(fold) if own == wanted]):
                return places
        return []


def read_place(text: str, options: Options) -> int | None:
    """Read which option an answer names.

    Args:
        text: The answer.
        options: The question's options.

    Returns:
        The option's place, from 0; None if the text names no option, several, or a label with another option's text.

    >>> colours = Options.read(["A. red", "B. blue"])
    >>> [read_place(text, colours) for text in ("**B**", "blue", "B. blue", "A. blue", "A or B", "A. red or B. blue")]
    [1, 1, 1, None, None, None]
    """
    if len(text) > MAX_CHOICE_LENGTH:
        return None
    plain = ""
    for reader in (folded, normal):  # as written first, because an option's text may begin like an announcement
        plain = reader(text).strip(" !")
        if (place := _whole_text(plain, options)) is not None:
            return place
    return _one_named(plain, options)


def same_choice(prediction: str, solution: str, options: Sequence[object] | None) -> bool:
    """Tell whether two answers name the same option, or are the same text if neither names an option.

    Args:
        prediction: The predicted answer.
        solution: The true answer.
        options: The question's options; None if they are unknown.

    >>> same_choice("blue", "B", ["A. red", "B. blue"]), same_choice("yes", "Yes.", None)
    (True, True)
    """
    if prediction == solution:
        return is_visible(prediction)
    known = Options.read(() if options is None else options)  # parquet returns None for an absent list
    predicted, true = read_place(prediction, known), read_place(solution, known)
    if predicted is None and true is None:
        return _key(prediction) == _key(solution) != ""
    return predicted == true


@lru_cache(maxsize=1024)
def _read_options(options: tuple[str, ...]) -> Options:
    if not options:
        return Options((), (), dict(zip(LETTERS, range(len(LETTERS)), strict=True)))
    texts = [folded(option) for option in options]
    for pick in (_own_label, _letter_before_text):
        split = [pick(text, place) for place, text in enumerate(texts)]
        labels = [label for label, _ in split]
        if "" not in labels and len(set(labels)) == len(labels) and _alike(labels):
            break
    else:
        names = [*LETTERS, *(f"option {place}" for place in range(len(LETTERS), len(texts)))]
        split = list(zip(names, texts, strict=False))
        labels = names[: len(texts)]
    by_place = {} if set(labels) <= set(LETTERS) else dict(zip(LETTERS, range(len(labels)), strict=False))
    named = by_place | {label: place for place, label in enumerate(labels)}
    return Options(tuple(labels), tuple(text for _, text in split), named)


def _own_label(text: str, place: int) -> tuple[str, str]:
    match = LABELLED.fullmatch(text)
    labelled = match and match["rest"] and (match["close"] or match["mark"] is not None)
    return (match["name"].upper(), match["rest"]) if match and labelled else ("", text)


def _letter_before_text(text: str, place: int) -> tuple[str, str]:
    """Read `A red`, `B blue`: letters without punctuation count if they run from A in order."""
    in_order = place < len(LETTERS) and text.startswith(f"{LETTERS[place]} ")
    return (LETTERS[place], text[2:]) if in_order else ("", text)


def _alike(labels: Sequence[str]) -> bool:
    """Tell whether labels are all letters, all numbers or all Roman numerals."""
    return (
        all(len(label) == 1 and label.isalpha() for label in labels)
        or all(label.isdigit() for label in labels)
        or list(labels) == _ROMAN[: len(labels)]
    )


def _whole_text(text: str, options: Options) -> int | None:
    """Return the option whose label, text, or label and text make up the whole text."""
    match = LABELLED.fullmatch(text)
    place = options.place_of(match["name"]) if match else None
    if match and place is not None and not match["rest"]:
        return place
    own = options.places_of_text(text)
    if len(own) == 1:
        return own[0]
    if match and place is not None and place in options.places_of_text(match["rest"]):
        return place
    return None


def _one_named(text: str, options: Options) -> int | None:
    """Return the only option that a longer text names by its label, unless it also contains another option's text."""
    if DENIED.search(text):
        return None
    match = LABELLED.fullmatch(text)
    place = options.place_of(match["name"]) if match and _is_label(match) else None
    if match is None or place is None:
        named = _places(text, NAMING, options)
        rest, explained = text, False
    else:
        named, rest = {place}, match["rest"]
        own = options.texts[place].rstrip(" .") if options.texts else ""
        after = rest[len(own) : len(own) + 1]
        explained = bool(own) and _case(rest).startswith(_case(own)) and not after.isalnum()
        rest = rest[len(own) :] if explained else rest
    if len(named) != 1:
        return None
    # The label's punctuation may join another label: "b, c", "1、2".
    found = _places(f"\n{rest}", [*NAMING, JOINED, ALONE], options)
    (only,) = named
    return only if found <= named and not _holds_another(rest, only, options, segments_only=explained) else None


def _is_label(match: re.Match[str]) -> bool:
    if match["mark"] is None:
        return match["close"] is not None
    # "e.g." and "A.M." are not labels, but "B.blue" is one.
    return bool(match["gap"]) or not match["mark"].endswith(".") or re.match(r"[^\W\d]{2}", match["rest"]) is not None


def _places(text: str, patterns: Sequence[re.Pattern[str]], options: Options) -> set[int]:
    places = map(options.place_of, _names(text, patterns))
    return {place for place in places if place is not None}


def _names(text: str, patterns: Sequence[re.Pattern[str]]) -> Iterator[str]:
    for pattern in patterns:
        for match in pattern.finditer(text):
            groups = match.groupdict()
            name = groups["name"] or groups["half"]
            before_a_word = (groups.get("after") or "").strip() not in {"", *NOT_AN_ARTICLE}
            if before_a_word and (name == "a" or (name == "A" and groups.get("start") is not None)):
                continue  # an article
            if name != "I" or pattern is not ALONE:
                yield name


def _holds_another(text: str, place: int, options: Options, *, segments_only: bool) -> bool:
    """Tell whether a text contains the text of an option other than the one at a place.

    An option's text of several words counts anywhere in the text, a single word only between separators. With
    `segments_only` false, a single word counts anywhere unless it is a very common one.
    """
    if not options.texts:
        return False
    keys, bare = options.folds[1], options.folds[2]
    whole = _key(text)
    segments = {_ARTICLE.sub("", _key(segment)) for segment in _SEPARATORS.split(text)}
    for other, (key, plain) in enumerate(zip(keys, bare, strict=True)):
        if other == place or not key or key in keys[place]:
            continue
        if plain in segments:
            return True
        if " " not in plain and (segments_only or key in _COMMON or len(key) == 1 or key.isdigit()):
            continue
        if re.search(rf"(?<![a-z0-9]){re.escape(plain)}(?![a-z0-9])", whole):
            return True
    return False


def _case(text: str) -> str:
    return " ".join(folded(text).casefold().split()).rstrip(" .")


def _key(text: str) -> str:
    return _case(normal(text)).strip(" ,;:!?\"'")
