# SPDX-License-Identifier: Apache-2.0
"""Which one option an answer names: by its label, its text, or both; naming more than one is naming none [ours]."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from verl_p2r.answers.normal import folded, normal
from verl_p2r.visible import is_visible

MAX_CHOICE_LENGTH = 10_000
"""A longer answer names no option, unless it is written exactly as the other side."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ROMAN = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"]

_NAME = r"(?P<name>[IVXivx]{2,4}|[A-Za-z]|\d{1,2})"
# At the start of a text or of an option: "(B)", "[B]", "B.", "B) text", "B - text", "B" before a line end or Chinese.
_LABELLED = re.compile(
    rf"(?:(?:option|choice|answer|答案|选项|選項|选择?|選擇?)(?: |(?=[^\x00-\x7f(\[])|(?<=[^\x00-\x7f])))?"
    rf"(?P<open>[(\[{{<]{{1,2}})?{_NAME}(?P<close>[)\]}}>]{{1,2}})?"
    r"(?P<mark> ?(?:[.:),;]{1,2}|-(?= )|[=-]>)|(?<= )-|\n|选项|選項|项|項"
    r"|(?=[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]))?"
    r"(?P<gap>[ \n]*)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_OPEN, _CLOSE = r" ?[(\[\x22']?", r"[)\]\x22']?"
# These name an option wherever they stand.
_NAMING = [
    re.compile(rf"(?<![\w\\])[(\[]{_NAME}[)\]]|(?<![\w(\[.]){_NAME.replace('name', 'half')}\)(?!\w)"),
    re.compile(
        r"(?:\b(?:options?|choices?|answers?|select|selected|choose|pick)(?: is| was| are|:| would be)?"
        r"|选项?|選項?|答案[是为:]?)"
        rf"{_OPEN}{_NAME}(?![\w']|-\w)(?P<after> [a-z]+)?",
        re.IGNORECASE,
    ),
    re.compile(
        r"(?:[,;:)\n]|\. |\b(?:so|thus|hence|therefore|is))(?: it is| it's| the answer is)?"
        rf"{_OPEN}(?P<name>[A-Z]|[IVX]{{2,4}}){_CLOSE}\.?$"
    ),
    re.compile(r"^(?P<name>[A-Z])(?= is\b| because\b| since\b| as\b| seems\b)"),
]
# After "or", "and", a comma or a slash, and before the end of the clause, a label is one more option.
_JOINED = re.compile(
    rf"(?:\b(?:or|and|nor|not|is|be|maybe|perhaps|possibly)\b|[,;:/|&+?!\n或和及与與]|[-.] ){_OPEN}{_NAME}"
    r"(?!\.\w)(?= ?(?:[.,;:)\]/|&?!\n\x22']|$|or\b|and\b|或|和))",
    re.IGNORECASE,
)
# A capital that stands alone is a label too, save initials, and an article at the beginning of a sentence.
_ALONE = re.compile(
    r"(?P<start>(?:^|[.!?:\n\x22] ?))?(?<![A-Za-z0-9_'.&-])(?P<name>[A-Z]|[IVX]{2,4})(?![A-Za-z0-9_'&-]|\.[A-Za-z])"
    r"(?P<after> [a-z]+)?"
)
_AFTER_A_LABEL = """or and nor but is was are would seems could can may might should will because since as if then than
too also maybe perhaps possibly instead over vs versus not rather a an it the option answer choice"""
_NOT_AN_ARTICLE = frozenset(_AFTER_A_LABEL.split())

_ANY_LABEL = r"(?:[A-Za-z]|\d{1,2})"
_NOT_CJK = "不是|不选|不選|不應選|并非|並非|而非|排除|除了"
_WRONG_CJK = "不对|不對|不正确|不正確|不是|错|錯|不符"

# "B is wrong" and "not B" name B, but not as the answer.
_DENIED = re.compile(
    r"\b(?i:not|isn't|except|excluding|but|neither|than|instead of)(?i: option| choice| answer)?"
    rf"{_OPEN}[A-Z]{_CLOSE}?(?![\w'])"
    rf"|(?<![\w'])[A-Z]{_CLOSE}?(?i: is| was|'s| seems| looks)(?i: \w+ly)? (?i:not|incorrect|wrong|false|unlikely)\b"
    r"|(?<![\w'])[A-Z](?i: isn't| wasn't| can't| cannot| is ruled out| is the (?:wrong|incorrect))"
    rf"|\b(?i:not|don't|doesn't) (?i:think|believe|say)(?i: that)?(?i: it is| it's| the answer is){_OPEN}[A-Z](?![\w'])"
    rf"|\b(?i:wrong|incorrect)(?i: option| choice| answer| one)(?i: is|:)?{_OPEN}[A-Z](?![\w'])"
    r"|\b(?i:not) [(\[][a-z][)\]]"
    + "|".join(
        (
            "",
            rf"(?:{_NOT_CJK})(?:选项|選項|答案)?\s?[(\[]?{_ANY_LABEL}(?![A-Za-z0-9])",
            rf"(?<![A-Za-z0-9]){_ANY_LABEL}[)\]]?(?:选项|選項|项|項)?(?:明显|显然)?(?:是|为)?(?:{_WRONG_CJK})",
            rf"(?<![A-Za-z0-9]){_ANY_LABEL}(?:では|じゃ)な",
            rf"(?<![A-Za-z0-9]){_ANY_LABEL}(?:가|이|는|은)? ?(?:아니|아닙|틀)",
        )
    )
)

_SEPARATORS = re.compile(r"[,;/|\n()=?!]|[-.] |->|--| or | and | then | vs |或者?|以及|和")
_ARTICLE = re.compile(r"^(?:a|an|the) (?=\S)")
_COMMON = frozenset({"yes", "no", "none", "both", "all", "true", "false", "neither", "either"})


@dataclass(frozen=True)
class Options:
    """The options of one question, ready to be looked up.

    Attributes:
        labels: each option's own label, upper case; the letters A, B, C, … where they have none.
        texts: each option's text without its label, as written.
        named: label → the option's place; letters by place too where the options' own labels are numbers.
    """

    labels: tuple[str, ...]
    texts: tuple[str, ...]
    named: Mapping[str, int]

    @classmethod
    def read(cls, options: Sequence[object]) -> "Options":
        """Read a question's options: `A. text`, `(1) text`, `iv) text`, `B、text`, `A text`, or plain texts.

        Their own labels count when every option has one and no two have the same; else they are A, B, C, … by place.
        Of a question without known options, each letter is the label of one.

        >>> Options.read(["1. red", "2. blue"]).labels, Options.read(["red", "blue"]).labels
        (('1', '2'), ('A', 'B'))
        """
        return _read_options(tuple(map(str, options)))

    @cached_property
    def folds(self) -> tuple[tuple[str, ...], ...]:
        """The texts folded more and more: as written, without their dress, without an article."""
        keys = tuple(map(_key, self.texts))
        return tuple(map(_case, self.texts)), keys, tuple(_ARTICLE.sub("", key) for key in keys)

    def place_of(self, name: str) -> int | None:
        """The place of the option that a label names."""
        return self.named.get(name.upper())

    def places_of_text(self, text: str) -> list[int]:
        """The places of the options whose text this is: as written, failing that without dress, or without article."""
        key = _key(text)
        bare = key if "\n" in text else _ARTICLE.sub("", key)  # an A on a line of its own is a label
        for fold, wanted in zip(self.folds, (_case(text), key, bare), strict=True):
            if wanted and (places := [place for place, own in enumerate(fold) if own == wanted]):
                return places
        return []


def read_place(text: str, options: Options) -> int | None:
    """Read which option an answer names.

    Args:
        text: the answer.
        options: the question's options.

    Returns:
        The option's place; None when the text names no option, more than one, or a label beside another option's text.

    >>> colours = Options.read(["A. red", "B. blue"])
    >>> [read_place(text, colours) for text in ("**B**", "blue", "B. blue", "A. blue", "A or B", "A. red or B. blue")]
    [1, 1, 1, None, None, None]
    """
    if len(text) > MAX_CHOICE_LENGTH:
        return None
    plain = ""
    for reader in (folded, normal):  # as written first: an option's text may begin as an announcement does
        plain = reader(text).strip(" !")
        if (place := _whole_text(plain, options)) is not None:
            return place
    return _one_named(plain, options)


def same_choice(prediction: str, solution: str, options: Sequence[object] | None) -> bool:
    """Tell whether two answers name one option, or else are one text.

    >>> same_choice("blue", "B", ["A. red", "B. blue"]), same_choice("yes", "Yes.", None)
    (True, True)
    """
    if prediction == solution:
        return is_visible(prediction)
    known = Options.read(() if options is None else options)  # parquet gives None for an absent list
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
    match = _LABELLED.fullmatch(text)
    labelled = match and match["rest"] and (match["close"] or match["mark"] is not None)
    return (match["name"].upper(), match["rest"]) if match and labelled else ("", text)


def _letter_before_text(text: str, place: int) -> tuple[str, str]:
    """`A red`, `B blue`: letters without a mark count when they run from A."""
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
    """The option that a whole text is: its label, its text, or its label and its text."""
    match = _LABELLED.fullmatch(text)
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
    """The one option that a longer text names by labels, unless it holds another option's text too."""
    if _DENIED.search(text):
        return None
    match = _LABELLED.fullmatch(text)
    place = options.place_of(match["name"]) if match and _is_label(match) else None
    if match is None or place is None:
        named = _places(text, _NAMING, options)
        rest, explained = text, False
    else:
        named, rest = {place}, match["rest"]
        own = options.texts[place].rstrip(" .") if options.texts else ""
        after = rest[len(own) : len(own) + 1]
        explained = bool(own) and _case(rest).startswith(_case(own)) and not after.isalnum()
        rest = rest[len(own) :] if explained else rest
    if len(named) != 1:
        return None
    # The label's mark joins what follows it: "b, c", "1、2".
    found = _places(f"\n{rest}", [*_NAMING, _JOINED, _ALONE], options)
    (only,) = named
    return only if found <= named and not _holds_another(rest, only, options, segments_only=explained) else None


def _is_label(match: re.Match[str]) -> bool:
    if match["mark"] is None:
        return match["close"] is not None
    # "e.g." and "A.M." are no labels; "B.blue" is one.
    return bool(match["gap"]) or not match["mark"].endswith(".") or re.match(r"[^\W\d]{2}", match["rest"]) is not None


def _places(text: str, patterns: Sequence[re.Pattern[str]], options: Options) -> set[int]:
    places = map(options.place_of, _names(text, patterns))
    return {place for place in places if place is not None}


def _names(text: str, patterns: Sequence[re.Pattern[str]]) -> Iterator[str]:
    for pattern in patterns:
        for match in pattern.finditer(text):
            groups = match.groupdict()
            name = groups["name"] or groups["half"]
            before_a_word = (groups.get("after") or "").strip() not in {"", *_NOT_AN_ARTICLE}
            if before_a_word and (name == "a" or (name == "A" and groups.get("start") is not None)):
                continue  # an article
            if name != "I" or pattern is not _ALONE:
                yield name


def _holds_another(text: str, place: int, options: Options, *, segments_only: bool) -> bool:
    """Tell whether a text holds the text of another option than the one at a place.

    A text of several words counts wherever it stands, one of a single word where it stands between separators; with
    `segments_only` false it counts anywhere too, unless it is too common a word.
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
