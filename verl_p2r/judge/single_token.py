# SPDX-License-Identifier: Apache-2.0
"""A verdict in one token [ours]: the model may write only Yes or No, and its log-probabilities give P(Yes).

A small model that is asked for an explanation may never reach a verdict. One token always is one, and it costs a
fiftieth of an explanation. Servers differ in what they accept, so a request that is refused is repeated with fewer
fields, and the first form that works is kept:

    structured_outputs and logprobs     vLLM: nothing but Yes or No can be sampled
    logprobs                            OpenAI and most others: Yes and No are looked up among the likeliest tokens
    neither                             the one token that comes back must be Yes or No; there is no probability
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from verl_p2r.chat.client import ChatClient, Reply, Unanswered

logger = logging.getLogger(__name__)

T = TypeVar("T")

TOP = 5  # likeliest tokens that are asked for; every server known to us allows at least five
LEAST_MASS = 0.1
"""The least P(Yes) + P(No) that counts as a verdict when the token itself is another word."""

_AROUND = " \t\r\n*_`~#\"'“”‘’.,:;!()[]<>\u2581\u0120"  # and the marks with which tokenizers write a space


class Form(NamedTuple):
    """One form of the request.

    Args:
        name: What it asks for, in messages.
        fields: Fields of the request.
    """

    name: str
    fields: Mapping[str, Any]


_LOGPROBS = {"logprobs": True, "top_logprobs": TOP}
FORMS = (
    Form(
        "structured_outputs and logprobs",
        {"structured_outputs": {"choice": ["Yes", "No"]}, **_LOGPROBS},
    ),
    Form("logprobs", _LOGPROBS),
    Form("neither structured_outputs nor logprobs", {}),
)
"""The forms in the order in which they are tried."""


class Word(NamedTuple):
    """What one token says.

    Args:
        value: True for Yes.
        probability: P(Yes) / (P(Yes) + P(No)); None if the server gives no log-probabilities.
    """

    value: bool
    probability: float | None


class SingleToken:
    """Asks for one token, in the most constrained form that the server accepts.

    Args:
        client: The client of the model.
    """

    def __init__(self, client: ChatClient) -> None:
        self._client = client
        self._form = 0

    async def ask(self, content: Any, use: Callable[[Reply], T], **more: Any) -> T:
        """Ask for one completion, as `ChatClient.complete` does.

        A refused form is given up for all later requests only if a simpler one succeeds, because a request may be
        refused for another reason, such as its length.

        Raises:
            Unanswered: There is no usable reply, or the server refuses every form.
        """
        form, refusal = self._form, ""
        while True:
            try:
                result = await self._client.complete(content, use, **{**more, **FORMS[form].fields})
            except Unanswered as error:
                if error.status not in (400, 422) or error.filtered or form == len(FORMS) - 1:
                    raise
                refusal = refusal or str(error)
                form += 1
            else:
                if form > self._form:
                    self._form = form
                    logger.warning(
                        "the judge's server does not accept %s, so each verdict is one token with %s%s. It said: %s",
                        FORMS[0].name,
                        FORMS[form].name,
                        "" if FORMS[form].fields else "; without log-probabilities a soft reward is a hard one",
                        refusal,
                    )
                return result


def read_word(reply: Reply) -> Word | None:
    """Read a reply of one token.

    Args:
        reply: The reply, with the likeliest tokens if the server gives them.

    Returns:
        The word, or None if it is neither Yes nor No. With log-probabilities, the likelier of the two words counts, in
        all their spellings together, even if another token is likelier still, as long as the two have a probability of
        at least `LEAST_MASS`.

    >>> read_word(Reply("Yes", top=(("Yes", -0.105), (" yes", -2.996), ("No", -2.996))))
    Word(value=True, probability=0.95)
    >>> read_word(Reply("No")), read_word(Reply("Perhaps"))
    (Word(value=False, probability=None), None)
    """
    mass = {True: 0.0, False: 0.0}
    for token, logprob in reply.top:
        word = _value(token)
        if word is not None:
            mass[word] += math.exp(min(logprob, 0.0))
    both, said = mass[True] + mass[False], _value(reply.text)
    if both and (said is not None or both >= LEAST_MASS):
        probability = round(mass[True] / both, 4)
        return Word(probability >= 0.5, probability)
    return None if said is None else Word(said, None)


def _value(token: str) -> bool | None:
    """Read a token; a first piece such as `Y`, which a constrained reply may be cut to, counts as its word."""
    word = token.strip(_AROUND).lower()
    return None if not word else True if "yes".startswith(word) else False if "no".startswith(word) else None
