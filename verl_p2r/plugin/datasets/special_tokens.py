# SPDX-License-Identifier: Apache-2.0
"""Special tokens in responses, which contain some if they were saved with `skip_special_tokens=False`."""

import re
from collections.abc import Iterable
from typing import Any

from verl_p2r.data.errors import RowError


class SpecialTokens:
    """The special tokens of a model.

    Args:
        ends: tokens that end a turn, which the chat template writes after a response.
        others: all other special tokens, such as `<|im_start|>` and the placeholders of media.
    """

    def __init__(self, ends: Iterable[str], others: Iterable[str] = ()) -> None:
        self._trailing = re.compile(rf"(?:\s|{_either(ends)})+\Z")
        self._any = re.compile(_either({*ends, *others}))

    @classmethod
    def of(cls, tokenizer: Any, ending: str) -> "SpecialTokens":
        """Read them from a tokenizer.

        Args:
            tokenizer: tokenizer of the model.
            ending: what its chat template writes after a response. The special tokens in it end a turn, and so do the
                tokenizer's end and padding tokens.
        """
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        ends = {token for token in special if token in ending} | ({tokenizer.eos_token, tokenizer.pad_token} - {None})
        return cls(ends, special - ends)

    def stripped(self, response: str, field: str) -> str:
        """Strip white space from a response, and the end tokens after it.

        Args:
            response: the response.
            field: field that holds it, for the error.

        Raises:
            RowError: there is a special token elsewhere; the model would learn to stop there, or take it for a medium.

        >>> SpecialTokens(["<end>"], ["<pad>"]).stripped(" It moves left. <end><end>", "messages")
        'It moves left.'
        """
        response = self._trailing.sub("", response.rstrip()).strip()
        if found := self._any.search(response):
            raise RowError(
                field,
                "special tokens",
                f"field {field} has a response with the special token {found[0]} in it: save responses without special "
                "tokens, or drop the row",
            )
        return response


def _either(tokens: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)"
