# SPDX-License-Identifier: Apache-2.0
"""Which generated tokens belong to perception and which to reasoning, found on the token ids themselves."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from verl_p2r.template import perception_end

_BROKEN = "\ufffd"  # what decoding gives for bytes that are no character, or not yet
_MAX_CHARACTER_BYTES = 4


def decode_response(token_ids: Sequence[int], tokenizer: Any) -> str:
    """The text of generated ids, special tokens left out: what is parsed, and what the boundary is found in."""
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def perception_length(token_ids: Sequence[int], tokenizer: Any) -> int:
    """Count the leading response tokens that belong to perception.

    A token belongs to P when its first byte lies inside P's region (`template.perception_end`) of the decoded
    response; every later token belongs to R, end-of-sequence included `[ours]`. The count comes from decoded prefixes
    of the given ids, never from tokenising text again, and takes O(log n) decodes.

    Args:
        token_ids: Shape (n,), the generated ids of one response, without padding.
        tokenizer: Any Hugging Face tokenizer. The template's tags must not be special tokens: decoding skips those.

    Returns:
        The number of tokens in P, 0 to n. A skipped special token has no bytes and stands where the next byte does:
        inside P's region it belongs to P, at its end to R `[ours]`.

    >>> class Letters:
    ...     def decode(self, ids, **_):
    ...         return "".join(map(chr, ids))
    >>> perception_length([ord(letter) for letter in "<observation>a</observation><think>"], Letters())
    28
    """
    ids = [int(token) for token in token_ids]

    def decode(part: list[int]) -> str:
        return decode_response(part, tokenizer)

    def settled(length: int) -> int:
        """Count the characters that the first `length` tokens hold whole, whatever follows them."""
        for shorter in range(length, max(length - _MAX_CHARACTER_BYTES, -1), -1):
            # Byte-fallback decoders spoil a whole run of byte tokens when its last character is cut: step back to
            # the last cut between characters.
            text = decode(ids[:shorter])
            if not text.endswith(_BROKEN):
                break
        return len(text.rstrip(_BROKEN))

    def tokens_through(character: int) -> int:
        return bisect_left(range(len(ids)), character + 1, key=settled)

    text = decode(ids)
    end = perception_end(text)
    if end == 0:
        return 0
    if text[end - 1] != _BROKEN:
        return tokens_through(end - 1)
    # P ends in bytes that are no character, and a prefix does not tell how many: look back from the "<" of "<think>".
    count = tokens_through(end)
    last = decode(ids[count - 1 : count])
    if not last.startswith("<"):
        return count
    return bisect_left(range(count - 1), True, key=lambda start: decode(ids[start:count]) == last)


def segment_masks(perception_length: Tensor, response_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Split a batch's response mask into perception and reasoning.

    P_{i,t} = m_{i,t} ∧ (t < p_i),  R_{i,t} = m_{i,t} ∧ (t ≥ p_i)      (the segments of arXiv 2511.11113, Eq. 7)

    Args:
        perception_length: Shape (bs,), integer, tokens. Positions of the padded response row before it belong to P.
        response_mask: Shape (bs, L), bool or number; non-zero where the policy generated the token. It may have holes
            (tool tokens): they belong to neither segment but count as positions.

    Returns:
        `(perception_mask, reasoning_mask)`, each of shape (bs, L), bool, on the device of `response_mask`: disjoint,
        and together exactly `response_mask`.

    Raises:
        ValueError: The shapes do not fit together.

    >>> perception, reasoning = segment_masks(torch.tensor([2]), torch.tensor([[1, 0, 1, 1, 0]]))
    >>> perception.int().tolist(), reasoning.int().tolist()
    ([[1, 0, 0, 0, 0]], [[0, 0, 1, 1, 0]])
    """
    if response_mask.ndim != 2 or perception_length.shape != response_mask.shape[:1]:
        raise ValueError(
            "expected perception_length of shape (bs,) and response_mask of shape (bs, L), "
            f"got {tuple(perception_length.shape)} and {tuple(response_mask.shape)}"
        )
    mask = response_mask.bool()
    positions = torch.arange(mask.shape[1], device=mask.device)
    before = positions < perception_length.to(mask.device).unsqueeze(1)
    return mask & before, mask & ~before
