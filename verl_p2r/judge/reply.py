# SPDX-License-Identifier: Apache-2.0
"""Reads the verdict in a judge's reply."""

import re

from verl_p2r.chat.thinking import spoken

# At most one optional `/`: the two runs of white space never compete for the same characters, so time is linear.
_TAG = re.compile(r"<\s*(/\s*)?judge?ment\s*>", re.IGNORECASE)
_WRAPPING = " \t\r\n\f\v\xa0\u3000*_`~#\"'“”„‘’‚«»‹›「」『』.,:;!…$–—-()[]{}。．，！"
"""Markdown, quotes and punctuation that models write around the word."""


def parse_verdict(reply: str, cut: bool = False) -> bool | None:
    """Read `<judgement>Yes</judgement>` or `<judgement>No</judgement>` from a judge's reply.

    A reasoning model's thinking is ignored (`thinking.spoken`). Case, the spelling `judgment`, white space around tag
    names, and white space, markdown, quotes and punctuation around the word do not matter. Several blocks must agree.
    Takes time linear in the reply's length.

    Args:
        reply: The whole reply.
        cut: Whether the reply was cut off. Its thinking may then have begun in the prompt and be unfinished, so a
            block counts only at the reply's end or after visible thinking [ours].

    Returns:
        The verdict, or None if the reply holds no verdict, contradicting verdicts, or a judgement block that is not
        exactly one Yes or No between one opening and one closing tag [ours].

    >>> parse_verdict("<think>Yes? <judgement>Yes</judgement></think> Not stated. <judgment>**No**</judgment>")
    False
    >>> print(parse_verdict("<judgement>Yes</judgement> or <judgement>No</judgement>"))
    None
    """
    said = spoken(reply)
    tags = list(_TAG.finditer(said.text))
    if not tags or len(tags) % 2:
        return None
    if cut and not said.thought and said.text[tags[-1].end() :].strip(_WRAPPING):
        return None
    words = set()
    for opening, closing in zip(tags[::2], tags[1::2], strict=True):
        if opening[1] or not closing[1]:
            return None
        words.add(said.text[opening.end() : closing.start()].strip(_WRAPPING).lower())
    return {"yes": True, "no": False}.get(words.pop()) if len(words) == 1 else None
