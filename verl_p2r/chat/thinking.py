# SPDX-License-Identifier: Apache-2.0
"""Removes a reasoning model's thinking from its reply, because thinking may weigh both verdicts without deciding.

Servers without a reasoning parser leave the thinking in the reply. Its marks depend on the model: `<think>`
(Qwen, DeepSeek, GLM), `[THINK]` (Magistral), `◁think▷` (Kimi), `<seed:think>`, `<|START_THINKING|>` (Command A),
`<|begin_of_thought|>` (OpenThinker), channels (gpt-oss, Gemma), and plain words (Granite, gpt-oss without its tokens).
"""

import re
from dataclasses import dataclass

_NAMES = "think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad|longcat_think|inner_monologue"
# Runs of white space are bounded to keep the search linear.
_MARK = re.compile(
    rf"""
    (?= [<＜◁\[] [\s|/]{{0,12}} [a-z] ) (?:
    [<＜◁] \|? \s{{0,8}} (?P<slash>/\s{{0,8}})? (?:\w{{1,16}}:)? (?:{_NAMES}) (?:\s[^<>]{{0,200}})? \|? [>＞▷]
    | \[ (?P<square_slash>/)? (?-i:THINK(?:ING)?) \]
    | <\| (?: begin_of_ | begin_ | start_of_ | start_ )? (?:think(?:ing)?|thought|reasoning) (?: _begin | _start )? \|>
    | <\| inner_prefix \|>
    | <\|channel\|?> \s{{0,8}} (?:analysis|commentary|thought)
    | (?P<closes>
        <\| (?: end_of_ | end_ ) (?:think(?:ing)?|thought|reasoning) \|>
        | <\| (?:think(?:ing)?|thought|reasoning) _end \|>
        | <\| inner_suffix \|>
        | <\|channel\|> \s{{0,8}} final (?: \s{{0,8}} <\|message\|> )?
        | <channel\|>
      )
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Only at the very beginning of a reply, because a judge may quote such words later.
_WORDS = (
    (re.compile(r"\s*analysis(?=[^\W\d_a-z])"), re.compile(r"assistant\s?final")),
    (re.compile(r"\s*Here(?:'s| is) my thought process:"), re.compile(r"Here(?:'s| is) my response:")),
)


@dataclass(frozen=True)
class Spoken:
    """A reply without its thinking.

    Args:
        text: The text outside of thinking; pieces separated by thinking are joined by a line feed.
        thought: Whether there was thinking.
        finished: Whether the reply ends outside of thinking.
    """

    text: str
    thought: bool
    finished: bool


def spoken(reply: str) -> Spoken:
    """Remove the thinking from a reply, in time linear in its length.

    A closing mark without an opening one ends thinking that began in the prompt, so everything before it is thinking.
    An opening mark without a closing one begins unfinished thinking [ours].

    Args:
        reply: The whole reply.

    >>> spoken("<think>Yes or no?</think>Yes.")
    Spoken(text='\\nYes.', thought=True, finished=True)
    >>> spoken("Yes or no?</think>Yes.").text, spoken("<think>Yes or").finished
    ('Yes.', False)
    """
    thought = False
    for opening, closing in _WORDS:
        if opening.match(reply):
            end = closing.search(reply)
            if end is None:
                return Spoken("", thought=True, finished=False)
            reply, thought = reply[end.end() :], True
    said: list[str] = []
    start, inside = 0, False
    for mark in _MARK.finditer(reply):
        thought = True
        if mark["slash"] or mark["square_slash"] or mark["closes"]:
            if not inside:
                said.clear()
            start, inside = mark.end(), False
        elif not inside:
            said.append(reply[start : mark.start()])
            inside = True
    if not inside:
        said.append(reply[start:])
    return Spoken("\n".join(said), thought, not inside)
