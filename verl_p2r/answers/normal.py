# SPDX-License-Identifier: Apache-2.0
"""Removes markup and announcements from an answer, before every lenient comparison [ours].

Models write one answer in many ways: `**B**`, `$\\boxed{\\text{B}}$`, `答案：Ｂ。`, "The answer is B". Both sides of a
comparison are normalised, so that such differences do not matter. Every pattern examines each character a bounded
number of times, because a policy in training may write anything.
"""

import re
import unicodedata
from collections.abc import Callable

from verl_p2r.visible import without_invisible

MAX_LAYERS = 16
"""The most nested wrappings that are removed; a more deeply wrapped text is not an answer and becomes empty."""

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»「」『』〝〞", '"'),
        **dict.fromkeys("‐‑‒–—―−﹘", "-"),
        **dict.fromkeys("【〔［", "["),
        **dict.fromkeys("】〕］", "]"),
        **dict.fromkeys("～〜∼∽", "~"),
        **dict.fromkeys("≃≅≒≑", "≈"),
        **dict.fromkeys("✕✖⨯·⋅∙•∗", "×"),
        **dict.fromkeys("º˚", "°"),
        **dict.fromkeys("⁄∕", "/"),
        **{chr(0x2460 + i): f"({i + 1})" for i in range(20)},  # ① to ⑳, which NFKC would turn into bare digits
        **{chr(0x24B6 + i): f"({chr(65 + i)})" for i in range(26)},  # Ⓐ to Ⓩ
        **{letter: f" {unicodedata.normalize('NFKC', letter).replace('⁄', '/')}" for letter in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"},
        "。": ". ",
        "、": ", ",
        "∶": ":",
        "٪": "%",
        "٫": ".",
        "٬": ",",
    }
)
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+|[₀₁₂₃₄₅₆₇₈₉]+")  # NFKC would turn 2³ and 2₃ into 23
_FOREIGN_DIGIT = re.compile(r"[^\W0-9_a-zA-Z]")

_TEXT_COMMANDS = (
    "boxed|fbox|text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname|emph|underline|bm|boldsymbol"
)
_NEXT_BOX = re.compile(r"\s*\\boxed")
_GROUP = re.compile(
    r"\\[dtc]?frac\s?(?:\{(?P<over>[^{}]*)\}|(?P<one>\d))\s?(?:\{(?P<under>[^{}]*)\}|(?P<two>\d))"
    rf"|\\(?:{_TEXT_COMMANDS})\s?\{{(?P<text>[^{{}}]*)\}}"
)
_SYMBOLS = [
    (re.compile(r"\\(?:left|right|displaystyle|bf|rm|quad|qquad)(?![A-Za-z])|\\ "), " "),
    (re.compile(r"\\[,;:!]"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\^\s?\{?\s?\\circ\s?\}?|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\\(?:approx|simeq|sim)(?![A-Za-z])"), "≈"),
    (re.compile(r"\\pi(?![A-Za-z])"), "π"),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"\\([%#&_€£¥])"), r"\1"),
    (re.compile(r"\^\{([-+]?\d{1,9})\}"), r"^\1"),
]
_DOLLAR = re.compile(r"(?<!\\)\$")

_MARKDOWN = [
    (re.compile(r"<(b|i|u|em|strong|p|span)>([^<]*)</\1>", re.IGNORECASE), r"\2"),
    (re.compile(r"```(?:[a-z]{0,12}\n)?([^`]*)```"), r"\1"),
    (re.compile(r"(?<![A-Za-z0-9*])(\*{1,4})([^*\n]+)\1(?![A-Za-z0-9*])"), r"\2"),
    (re.compile(r"(?<![A-Za-z0-9_])(_{1,3})([^_\n]+)\1(?![A-Za-z0-9_])"), r"\2"),
    (re.compile(r"(?<![A-Za-z0-9`])`([^`\n]+)`(?![A-Za-z0-9`])"), r"\1"),
    (re.compile(r"^(?:#{1,6}|>|[*+×](?! ?\d))[ \t]+", re.MULTILINE), ""),
    (re.compile(r"^-[ \t]+(?=[^\d\s.$€£¥])", re.MULTILINE), ""),  # "- 5" is minus five
]
_QUOTED = re.compile(r"""(["'])([^"']+)\1\.?""")

_SPACES = re.compile(r"[^\S\n]+")
_LINES = re.compile(r" ?\n\s*")

_QUALIFIED = r"(?:(?:my|the|your|our|final|correct|right|best|most|likely|appropriate|accurate|suitable|true)\s){0,5}"
_LEAD = r"(?:(?:so|thus|hence|therefore|then|finally|overall|in conclusion|in summary|ok|okay|well)\b\s?[,:]?\s?){0,2}"
_ANNOUNCEMENTS = [
    re.compile(
        rf"{_LEAD}(?:(?:i\s(?:think|believe|guess|would\ssay)|i'd\ssay)\s(?:that\s)?)?{_QUALIFIED}"
        r"(?:answer|option|choice|solution|result|response|(?:total\s)?(?:number|count)|total|sum|value)(?:\s(?:to|for)\s(?:this|the|that)\s(?:question|problem))?"
        r"\s?(?:(?:is|was|would\sbe|should\sbe|must\sbe)\b\s?:?|[:=-]>?|→)\s?",
        re.IGNORECASE,
    ),
    re.compile(
        rf"{_LEAD}(?:it\sis|it's|this\sis|that\sis|there\s(?:is|are|was|were)"
        r"|i(?:\swill|\swould|'d|'ll)?\s(?:choose|chose|pick|select|say|think|believe|guess|go\swith))\b\s?:?\s?",
        re.IGNORECASE,
    ),
    re.compile(r"(?:so|thus|hence|therefore)\s?[,:]\s?", re.IGNORECASE),
    re.compile(
        r"(?:la\s|die\s|a\s|o\s)?(?:respuesta|réponse|risposta|resposta|antwort|ответ|jawaban|الجواب|الإجابة|उत्तर)"
        r"(?:\s(?:correcta|correcte|finale|final|corretta|correta))?\s?(?:\b(?:es|est|è|é|ist|lautet)\b\s?:?|:)\s?",
        re.IGNORECASE,
    ),
]
_CJK_ANNOUNCEMENTS = [
    re.compile(
        r"(?:所以|因此|综上|綜上|故|那么)?\s?,?\s?(?:我的|本题|本題|该题)?(?:的)?(?:正确|正確|最终|最終|最佳)?的?"
        r"(?:答案|答え|正解|选项|選項)\s?(?:应该|應該|应|應)?(?:是|为|為|选|選|は|:|=)+\s?:?\s?"
    ),
    re.compile(r"(?:一共|总共|總共|共)有?(?=[\d一二三四五六七八九十两])"),
    re.compile(r"(?:정답|답)\s?(?:은|:)\s?"),
]
_ENDINGS = re.compile(r"(?:です|だ|である|입니다|이다)\.?$")


def folded(text: str) -> str:
    """Replace full-width, styled and foreign characters, quotes, dashes and CJK punctuation by plain ASCII.

    Superscripts become `^3` and ½ becomes ` 1/2`, because compatibility folding alone would turn 2³ into 23 and 1½ into
    11/2. Invisible characters are removed, and a run of white space becomes one space or one line end.

    >>> folded("（Ｂ）　２³＝８。"), folded("1½ – “ok”")
    ('(B) 2^3=8.', '1 1/2 - "ok"')
    """
    if not text.isascii():
        text = _RAISED.sub(_raised, text).translate(_CHARACTERS)
        text = unicodedata.normalize("NFKC", without_invisible(text)).replace("⁄", "/")
        text = _FOREIGN_DIGIT.sub(_ascii_digit, text)
    elif not text.isprintable():
        text = without_invisible(text)
    return _LINES.sub("\n", _SPACES.sub(" ", text)).strip()


def unwrapped(text: str) -> str:
    """Remove markup around a whole text: quotes, code fences, emphasis, `\\boxed{}`, `\\text{}` and `$…$`.

    Unlike `normal`, this keeps the inside of the text, all of which is content in a transcription.

    >>> unwrapped("```\\nNO PARKING\\n```"), unwrapped(r"\\boxed{\\text{costs $5}}"), unwrapped('He said "no"')
    ('NO PARKING', 'costs $5', 'He said "no"')
    """
    return _layer_by_layer(text, _whole)


def normal(text: str) -> str:
    """Reduce an answer to its content: no markdown, TeX, quotes or words that announce it.

    Args:
        text: One answer, as written.

    Returns:
        The content; `normal(normal(text)) == normal(text)`. Case, units, inner punctuation and a final full stop are
        kept. Empty if the text is wrapped in more than `MAX_LAYERS` layers.

    >>> [normal(text) for text in ("**B**", "$\\\\boxed{\\\\text{B}}$", "The correct answer is: (B).", "答案：Ｂ")]
    ['B', 'B', '(B).', 'B']
    >>> normal(r"$2\\frac{1}{2}\\text{ cm}$"), normal(r"2.5 \\times 10^{3}"), normal(r"\\$1{,}000")
    ('2 1/2 cm', '2.5 × 10^3', '$1,000')
    """
    return _layer_by_layer(text, _inside)


def _layer_by_layer(text: str, layer: Callable[[str], str]) -> str:
    for _ in range(MAX_LAYERS):
        before, text = text, layer(folded(text))
        if text == before:
            return text
    return ""


def _whole(text: str) -> str:
    for pattern in _WRAPPERS:
        if match := pattern.fullmatch(text):
            text = match[match.lastindex or 0].strip()
    return text


_WRAPPERS = [
    re.compile(r"```(?:[a-z]{0,12}\n)?([^`]*)```"),
    re.compile(r"(?:\*\*|__)([^*_]+)(?:\*\*|__)"),
    re.compile(r"`([^`]+)`"),
    re.compile(r'"([^"]+)"'),
    re.compile(r"'([^']+)'"),
    re.compile(r"\$\$?([^$]+)\$\$?"),
    re.compile(rf"\\(?:{_TEXT_COMMANDS})\s?\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}"),
]


def _inside(text: str) -> str:
    if "\\" in text or "$" in text or "{" in text:
        text = _without_tex(text)
    if "*" in text or "_" in text or "`" in text or "#" in text or ">" in text or text.startswith(("-", "+", "×")):
        for pattern, plain in _MARKDOWN:
            text = pattern.sub(plain, text)
    if text[:1] in ("'", '"') and (match := _QUOTED.fullmatch(text)):
        text = match[2]
    for announcement in _ANNOUNCEMENTS if text.isascii() else _ANNOUNCEMENTS + _CJK_ANNOUNCEMENTS:
        if (match := announcement.match(text)) and match.end() < len(text):
            text = text[match.end() :]
    return _ENDINGS.sub("", text) if not text.isascii() else text


def _without_tex(text: str) -> str:
    for pattern, plain in _SYMBOLS:
        text = pattern.sub(plain, text)
    text = _GROUP.sub(_group, text)
    if len(_DOLLAR.findall(text)) % 2 == 0:  # an odd number of them includes a currency
        text = _DOLLAR.sub("", text)
    return text.replace(r"\$", "$")


def _group(match: re.Match[str]) -> str:
    if match["text"] is not None:
        # Two boxes are two answers: \\boxed{5}\\boxed{6} is not 56.
        two = match[0].startswith("\\boxed") and _NEXT_BOX.match(match.string, match.end()) is not None
        return f"{match['text']} ; " if two else match["text"]
    over, under = match["over"] or match["one"] or "", match["under"] or match["two"] or ""
    return f" {over.strip()}/{under.strip()}"


def _raised(match: re.Match[str]) -> str:
    return ("^" if match[0][0] in "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻" else "_") + unicodedata.normalize("NFKC", match[0]).replace("−", "-")


def _ascii_digit(match: re.Match[str]) -> str:
    digit = unicodedata.decimal(match[0], None)
    return match[0] if digit is None else str(digit)
