# SPDX-License-Identifier: Apache-2.0
"""Which generated tokens belong to perception and which to reasoning, determined on the token ids themselves."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from verl_p2r.template import block_spans, perception_end
from verl_p2r.visible import is_visible

_BROKEN = "\ufffd"  # the decoded form of bytes that do not make a character, or not yet
_MAX_CHARACTER_BYTES = 4


def decode_response(token_ids: Sequence[int], tokenizer: Any) -> str:
    """Decode generated ids without special tokens; this text is parsed, and the boundary is found in it.

    Args:
        token_ids: Shape (n,), the generated ids of one response, without padding.
        tokenizer: Any Hugging Face tokenizer.
    """
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def perception_length(token_ids: Sequence[int], tokenizer: Any) -> int:
    """Count the leading response tokens that belong to perception.

    A token belongs to P if its first byte lies inside P's region (`template.perception_end`) of the decoded response.
    Every later token belongs to R, including end-of-sequence `[ours]`. The count is found by decoding prefixes of the
    given ids, never by tokenising text again, and takes O(log n) decodes.

    Args:
        token_ids: Shape (n,), the generated ids of one response, without padding.
        tokenizer: Any Hugging Face tokenizer. The template's tags must not be special tokens: decoding skips those.

    Returns:
        The number of tokens in P, 0 to n. A skipped special token has no bytes and takes the position of the next
        byte: inside P's region it belongs to P, at its end to R `[ours]`.

    >>> class Letters:
    ...     def decode(self, ids, **_):
    ...         return "".join(map(chr, ids))
    >>> perception_length([ord(letter) for letter in "<observation>a</observation><think>"], Letters())
    28
    """
    prefixes = _Prefixes(token_ids, tokenizer)
    return prefixes.tokens_before(perception_end(prefixes.text))


def visible_lengths(token_ids: Sequence[int], tokenizer: Any) -> tuple[int, int]:
    """Count the tokens of visible text inside the blocks of each process, which the length reward measures.

    A token counts if its first byte lies inside the content of the observation (for P), or of the think or answer block
    (for R), and it contains a visible character `[ours]`. Tags and text outside the blocks do not count. Neither do
    tokens of white space, zero-width characters, fillers or invalid bytes. The paper gives its band in tokens of the
    whole segment, but then padding would earn the reward.

    Args:
        token_ids: Shape (n,), the generated ids of one response, without padding.
        tokenizer: Any Hugging Face tokenizer, as for `perception_length`.

    Returns:
        `(perception, reasoning)`, in tokens. Takes O(n) decodes of at most four tokens each, most of them cached, and
        O(log n) decodes of prefixes.

    >>> class Letters:
    ...     def decode(self, ids, **_):
    ...         return "".join(map(chr, ids))
    >>> text = "  <observation>a  \u200b ball</observation><think>so </think><answer>B</answer> !!"
    >>> visible_lengths([ord(letter) for letter in text], Letters())
    (5, 3)
    """
    prefixes = _Prefixes(token_ids, tokenizer)
    counts = dict.fromkeys(("observation", "think", "answer"), 0)
    for tag, (start, stop) in block_spans(prefixes.text).items():
        first, end = prefixes.tokens_before(start), prefixes.tokens_before(stop)
        counts[tag] = _count_visible_tokens(prefixes.ids[first:end], tokenizer)
    return counts["observation"], counts["think"] + counts["answer"]


def _count_visible_tokens(ids: list[int], tokenizer: Any) -> int:
    """Count tokens that contain a visible character or a part of one."""
    count, start = 0, 0
    while start < len(ids):
        # A character that spans several tokens is decoded from all of them.
        for size in range(1, _MAX_CHARACTER_BYTES + 1):
            text = _decoded(tuple(ids[start : start + size]), tokenizer)
            if _BROKEN not in text:
                break
        else:
            size, text = 1, _decoded((ids[start],), tokenizer).replace(_BROKEN, "")  # invalid bytes
        count += size if is_visible(text) else 0
        start += size
    return count


@lru_cache(maxsize=1 << 16)
def _decoded(token_ids: tuple[int, ...], tokenizer: Any) -> str:
    return decode_response(token_ids, tokenizer)


class _Prefixes:
    """Maps the characters of a response to its tokens by decoding prefixes of the ids."""

    def __init__(self, token_ids: Sequence[int], tokenizer: Any) -> None:
        self.ids = [int(token) for token in token_ids]
        self._tokenizer = tokenizer
        self.text = self._decode(self.ids)

    def tokens_before(self, character: int) -> int:
        """Count the leading tokens whose first byte lies before the character at this index of the text."""
        if character == 0:
            return 0
        if self.text[character - 1] != _BROKEN:
            return self._tokens_through(character - 1)
        # The preceding character is an invalid byte, and prefixes do not reveal how many tokens encode it: search
        # backwards from the "<" that follows.
        count = self._tokens_through(character)
        last = self._decode(self.ids[count - 1 : count])
        if not last.startswith("<"):
            return count
        return bisect_left(range(count - 1), True, key=lambda start: self._decode(self.ids[start:count]) == last)

    def _decode(self, part: list[int]) -> str:
        return decode_response(part, self._tokenizer)

    def _settled(self, length: int) -> int:
        """Count the characters that the first `length` tokens determine, regardless of the following tokens."""
        for shorter in range(length, max(length - _MAX_CHARACTER_BYTES, -1), -1):
            # Byte-fallback decoders invalidate a whole run of byte tokens if its last character is incomplete: step
            # back to the last boundary between characters.
            text = self._decode(self.ids[:shorter])
            if not text.endswith(_BROKEN):
                break
        return len(text.rstrip(_BROKEN))

    def _tokens_through(self, character: int) -> int:
        return bisect_left(range(len(self.ids)), character + 1, key=self._settled)


def segment_masks(perception_length: Tensor, response_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Split a batch's response mask into perception and reasoning.

    P_{i,t} = m_{i,t} ∧ (t < p_i),  R_{i,t} = m_{i,t} ∧ (t ≥ p_i)      (the segments of arXiv 2511.11113, Eq. 7)

    Args:
        perception_length: Shape (bs,), integer, tokens. Earlier positions of the padded response row belong to P.
        response_mask: Shape (bs, L), bool or number; non-zero where the policy generated the token. It may have gaps
            (tool tokens), which belong to neither segment but count as positions.

    Returns:
        `(perception_mask, reasoning_mask)`, each of shape (bs, L), bool, on the device of `response_mask`. They are
        disjoint, and their union is `response_mask`.

    Raises:
        ValueError: The shapes do not match.

    >>> perception, reasoning = segment_masks(torch.tensor([2]), torch.tensor([[1, 0, 1, 1, 0]]))
    >>> perception.int().tolist(), reasoning.int().tolist()
    ([[1, 0, 0, 0, 0]], [[0, 0, 1, 1, 0]])
    """
    if response_mask.ndim != 2 or perception_length.shape != response_mask.shape[:1]:
        raise ValueError(
            "expected perception_length of shape (bs,) and response_mask of shape (bs, L), "
            f"got {tuple(perception_length.shape)} and {tuple(response_mask.shape)}"
        )
    mask, width = response_mask.bool(), response_mask.shape[1]
    # Row k of this view is True at its first width − k positions; copying rows is faster than comparing positions.
    leading = torch.arange(2 * width, device=mask.device).lt(width).unfold(0, width, 1)
    perception = mask & leading[width - perception_length.to(mask.device).long().clamp(0, width)]
    return perception, mask ^ perception
