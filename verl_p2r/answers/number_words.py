# SPDX-License-Identifier: Apache-2.0
"""Numbers in words: English up to billions, Chinese and Japanese numerals [ours]."""

import re

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: value for value, word in enumerate([*_SMALL.split(), "eighteen", "nineteen"])}
_WORDS |= {word: 10 * value for value, word in enumerate(_TENS.split(), 2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_WORD = re.compile(r"[ -]?([A-Za-z]+)")

_CJK_DIGITS = {**{digit: value for value, digit in enumerate("零一二三四五六七八九")}, "〇": 0, "两": 2, "兩": 2}
_CJK_TENS = {"十": 10, "百": 100, "千": 1000}
_CJK_SCALES = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_CJK_NUMBER = re.compile(f"[{''.join([*_CJK_DIGITS, *_CJK_TENS, *_CJK_SCALES])}]{{1,32}}")
_SHORTENED = re.compile("[百千万萬亿億][一二三四五六七八九两兩]$")


def leading_word_number(text: str) -> tuple[int, str] | None:
    """Read the number in words at the beginning of a text.

    Args:
        text: A text that may begin with a number in words.

    Returns:
        The number and the rest of the text; None if the text does not begin with a number.

    >>> leading_word_number("twenty-one balls"), leading_word_number("a hundred and five")
    ((21, ' balls'), (105, ''))
    >>> leading_word_number("两百三十个"), leading_word_number("a ball"), leading_word_number("two three")
    ((230, '个'), None, (2, ' three'))
    """
    if match := _CJK_NUMBER.match(text):
        value = _cjk_value(match[0])
        return None if value is None else (value, text[match.end() :])
    total = group = end = 0
    read, smallest, last_scale = False, 1000, 10**12
    while (match := _WORD.match(text, end)) and match.end() - match.start() <= 12:
        word = match[1].lower()
        if word == "a" and not read and text[match.end() :].lstrip().lower().startswith(("hundred", *_SCALES)):
            group, smallest = 1, 0
        elif word == "and" and read and group and group % 100 == 0 and _next_is_small(text, match.end()):
            end = match.end()
            continue
        elif word in _WORDS and _WORDS[word] < smallest:
            value = _WORDS[word]
            group += value
            smallest = 10 if value >= 20 else 0
        elif word == "hundred" and 0 < group < 100:
            group, smallest = group * 100, 100
        elif word in _SCALES and group and _SCALES[word] < last_scale:
            last_scale = _SCALES[word]
            total, group, smallest = total + group * last_scale, 0, 1000
        else:
            break
        read, end = True, match.end()
    return (total + group, text[end:]) if read else None


def _next_is_small(text: str, index: int) -> bool:
    match = _WORD.match(text, index)
    return match is not None and match[1].lower() in _WORDS


def _cjk_value(numeral: str) -> int | None:
    if all(character in _CJK_DIGITS for character in numeral) and ("〇" in numeral or "零" in numeral):
        return int("".join(str(_CJK_DIGITS[character]) for character in numeral))  # a year, digit by digit
    if _SHORTENED.search(numeral):
        return None  # 三百五 is 350, 一万二 is 12,000
    total = group = digit = 0
    for character, following in zip(numeral, [*numeral[1:], ""], strict=True):
        if character in _CJK_DIGITS:
            if following in _CJK_DIGITS and character not in "〇零":
                return None  # 三四个 is three or four
            digit = _CJK_DIGITS[character]
        elif character in _CJK_TENS:
            group, digit = group + (digit or 1) * _CJK_TENS[character], 0
        elif total + group + digit:
            total, group, digit = (total + group + digit) * _CJK_SCALES[character], 0, 0
        else:
            return None
    return total + group + digit
