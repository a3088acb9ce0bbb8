# SPDX-License-Identifier: Apache-2.0
"""How alike two texts are: 1 − word error rate for transcriptions, ROUGE for free-form answers."""

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import jiwer
from rapidfuzz.distance import LCSseq

from verl_p2r.answers.normal import folded, normal, unwrapped

# WER and ROUGE-L take time proportional to the product of the two lengths; these bounds keep any input fast [ours].
MAX_WORDS = 1024
"""Only this many words of OCR and free-form answers are compared."""
MAX_WORD_LENGTH = 100
"""Free-form words are cut to this many characters, because older releases of the stemmer recurse over them."""
MAX_TEXT_LENGTH = 50_000
"""Only this many characters are normalised."""

# Scripts without spaces between words, and Hangul with its attached particles: each character counts as a word.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"([{_UNSPACED}])")
_MARKS = (  # combining marks belong to the word, though they are neither letters nor digits
    r"\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963\u0980-\u0983\u09bc-\u09cd"
    r"\u0a00-\u0a03\u0a3c-\u0a4d\u0b3c-\u0b4d\u0bbe-\u0bcd\u0c3e-\u0c4d\u0cbc-\u0ccd\u0d3b-\u0d4d"
)
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}]|[{_MARKS}])+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_PLAIN = re.compile(r"[A-Za-z0-9 ,.;?!()'-]*")


def transcription_accuracy(prediction: str, solution: str, *, strict: bool = False) -> float:
    """Compare two transcriptions by 1 − word error rate, with words separated by white space; may be below 0.

    The lenient comparison also compares the texts without markup around them (see `normal.unwrapped`), with each
    character of Chinese, Japanese, Korean, Thai and similar scripts as a word. The better score counts, so that no
    real text is penalised [ours].

    >>> transcription_accuracy("no parking hear", "no parking here today")
    0.5
    >>> transcription_accuracy("**STOP**", "STOP"), transcription_accuracy("**STOP**", "STOP", strict=True)
    (1.0, 0.0)
    """
    score = _one_minus_wer(prediction.split(), solution.split())
    if strict or score == 1 or (_PLAIN.fullmatch(prediction) and _PLAIN.fullmatch(solution)):
        return score
    spaced = [
        _UNSPACED_CHARACTER.sub(r" \1 ", unwrapped(text[:MAX_TEXT_LENGTH])).split() for text in (prediction, solution)
    ]
    return max(score, _one_minus_wer(*spaced)) if spaced[1] else score


def _one_minus_wer(hypothesis: list[str], reference: list[str]) -> float:
    if hypothesis == reference:
        return float(bool(reference))  # a truth against itself, or a right answer
    # With twice the reference's words, the insertions alone make the error rate 1: no need to align.
    if len(hypothesis) >= 2 * len(reference):
        return 0.0
    if len(reference) > MAX_WORDS:
        reference, hypothesis = reference[:MAX_WORDS], hypothesis[:MAX_WORDS]
    return 1 - jiwer.wer(" ".join(reference), " ".join(hypothesis))


def text_similarity(prediction: str, solution: str, *, strict: bool = False) -> float:
    """Compare two free-form answers: (F₁ ROUGE-1 + F₁ ROUGE-2 + F₁ ROUGE-L) / 3, English words stemmed.

    Strict words are runs of a-z and 0-9, as in ROUGE's own tokenizer, so a Chinese text has none. The lenient
    comparison normalises the texts first; words are runs of letters and digits of any script, and each character of
    Chinese, Japanese, Korean, Thai and similar scripts is a word [ours].

    >>> round(text_similarity("The answer is: **a red ball**", "a red ball"), 3)
    1.0
    >>> text_similarity("红色的球", "红色的球"), text_similarity("红色的球", "红色的球", strict=True)
    (1.0, 0.0)
    """
    words = _ascii_words if strict else _words
    predicted, true = words(prediction), words(solution)
    if predicted == true:  # a truth against itself, or a right answer: the same values without loading nltk
        return (0.0, 2 / 3, 1.0)[min(len(true), 2)]  # one word has no pair for ROUGE-2
    return _rouge(_stems(predicted), _stems(true))


def _rouge(predicted: list[str], true: list[str]) -> float:
    """The mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L over stems.

    `rouge_score` counts n-grams and finds the longest common subsequence in Python loops that take ten times as long.
    """
    from rouge_score.scoring import fmeasure

    if not predicted or not true:
        return 0.0
    pairs, true_pairs = list(pairwise(predicted)), list(pairwise(true))
    scores = [
        fmeasure(common / max(len(found), 1), common / max(len(wanted), 1))
        for common, found, wanted in (
            (_common(predicted, true), predicted, true),
            (_common(pairs, true_pairs), pairs, true_pairs),
            (LCSseq.similarity(true, predicted), predicted, true),
        )
    ]
    return sum(scores) / len(scores)


def _common(found: list[Any], wanted: list[Any]) -> int:
    return (Counter(found) & Counter(wanted)).total()


def _ascii_words(text: str) -> list[str]:
    """Cut a text to the words ROUGE's own tokenizer would find, at most so many and so long."""
    return _cut(_ASCII_WORD.findall(text.lower()))


def _words(text: str) -> list[str]:
    text = normal(text[:MAX_TEXT_LENGTH])
    return _ascii_words(text) if text.isascii() else _cut(_WORD.findall(folded(text).casefold()))


def _cut(words: list[str]) -> list[str]:
    return [word[:MAX_WORD_LENGTH] for word in words[:MAX_WORDS]]


def _stems(words: list[str]) -> list[str]:
    """The stems of words as `rouge_score` takes them: it leaves words of up to three letters alone."""
    stem = _stemmer()
    return [stem(word) if len(word) > 3 else word for word in words]


@lru_cache(maxsize=1)
def _stemmer() -> Callable[[str], str]:
    # Imported on first use, because nltk takes a second to load. Stemming each word once saves most of ROUGE's time.
    from nltk.stem.porter import PorterStemmer

    return lru_cache(maxsize=1 << 16)(PorterStemmer().stem)
