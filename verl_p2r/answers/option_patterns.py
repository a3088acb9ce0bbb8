# SPDX-License-Identifier: Apache-2.0
"""The patterns by which an answer names, denies or lists options."""

import re

_NAME = r"(?P<name>[IVXivx]{2,4}|[A-Za-z]|\d{1,2})"
# A label at the start of a text or option: "(B)", "[B]", "B.", "B) text", "B - text", "B" before a line end or Chinese.
LABELLED = re.compile(
    rf"(?:(?:option|choice|answer|答案|选项|選項|选择?|選擇?)(?: |(?=[^\x00-\x7f(\[])|(?<=[^\x00-\x7f])))?"
    rf"(?P<open>[(\[{{<]{{1,2}})?{_NAME}(?P<close>[)\]}}>]{{1,2}})?"
    r"(?P<mark> ?(?:[.:),;]{1,2}|-(?= )|[=-]>)|(?<= )-|\n|选项|選項|项|項"
    r"|(?=[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]))?"
    r"(?P<gap>[ \n]*)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_OPEN, _CLOSE = r" ?[(\[\x22']?", r"[)\]\x22']?"
# These name an option anywhere in a text.
NAMING = [
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
# A label after "or", "and", a comma or a slash, before the end of the clause, names another option.
JOINED = re.compile(
    rf"(?:\b(?:or|and|nor|not|is|be|maybe|perhaps|possibly)\b|[,;:/|&+?!\n或和及与與]|[-.] ){_OPEN}{_NAME}"
    r"(?!\.\w)(?= ?(?:[.,;:)\]/|&?!\n\x22']|$|or\b|and\b|或|和))",
    re.IGNORECASE,
)
# A single capital is a label too, except for initials and for an article at the beginning of a sentence.
ALONE = re.compile(
    r"(?P<start>(?:^|[.!?:\n\x22] ?))?(?<![A-Za-z0-9_'.&-])(?P<name>[A-Z]|[IVX]{2,4})(?![A-Za-z0-9_'&-]|\.[A-Za-z])"
    r"(?P<after> [a-z]+)?"
)
_AFTER_A_LABEL = """or and nor but is was are would seems could can may might should will because since as if then than
too also maybe perhaps possibly instead over vs versus not rather a an it the option answer choice"""
NOT_AN_ARTICLE = frozenset(_AFTER_A_LABEL.split())

_ANY_LABEL = r"(?:[A-Za-z]|\d{1,2})"
_NOT_CJK = "不是|不选|不選|不應選|并非|並非|而非|排除|除了"
_WRONG_CJK = "不对|不對|不正确|不正確|不是|错|錯|不符"

# "B is wrong" and "not B" name B, but not as the answer.
DENIED = re.compile(
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
