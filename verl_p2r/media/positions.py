# SPDX-License-Identifier: Apache-2.0
"""M-RoPE positions of a prompt, with time in true seconds.

Three libraries give three answers for Qwen2.5-VL's time axis: verl's RL path assumes 1 s per temporal grid,
transformers truncates the seconds to an integer, and vLLM loses the frame rate and falls back to 24 fps. This module
has the definition that the model was trained with; both our trainer and our rollout use it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# A float32 quotient such as 2 / 2.5 can be just below its true value, and floor() would then lose a whole position.
# This factor corrects that and is far smaller than the distance between two frame rates. [ours]
_ROUNDING_GUARD = 1 + 1e-7


def guarded_seconds_per_grid(seconds: float) -> float:
    """Raise `seconds` per temporal grid above the rounding error of a float32 quotient.

    Args:
        seconds: temporal_patch_size / sampled_fps, in seconds.

    Returns:
        The seconds, larger by a factor of 1 + 1e-7.

    >>> import math
    >>> math.floor(10 * guarded_seconds_per_grid(float(torch.tensor(0.7))) * 2)  # 0.7 is 0.69999999 in float32
    14
    """
    return seconds * _ROUNDING_GUARD


def mrope_positions(
    input_ids: Tensor,
    grids: Sequence[Sequence[int]],
    temporal_steps: Sequence[float],
    *,
    placeholder_ids: Sequence[int],
    merge_size: int = 2,
) -> Tensor:
    """Compute the position of each token on the time, height and width axes.

    Text advances all three axes together. The tokens of a medium that starts at position p have
    (p + ⌊t · step⌋, p + h, p + w); the text after it continues one after the largest of them. For Qwen2.5-VL
    (arXiv 2502.13923, §2.1.2) step = seconds per temporal grid × tokens per second; for Qwen2-VL it is 1. For Qwen3-VL
    (arXiv 2511.21631) each temporal grid is a separate medium, with its time written in the text before it.

    Args:
        input_ids: token ids of one sequence, without padding. Shape: (L,), int64.
        grids: (t, h, w) of each medium in order of appearance, in patches before merging.
        temporal_steps: positions between two temporal grids of each medium; any number for images.
        placeholder_ids: the ids of `<|image_pad|>` and `<|video_pad|>`.
        merge_size: patches merged into one token along each spatial axis.

    Returns:
        Positions. Shape: (3, L), int64. Placeholder ids beyond the last medium (a model may generate them) count as
        text, as in vLLM.

    Raises:
        ValueError: the run of placeholders of a medium does not have the length of its grid.

    >>> ids = torch.tensor([5, 9, 9, 9, 9, 5])  # text, 2 temporal grids of 1x2 merged patches, text
    >>> mrope_positions(ids, [(2, 2, 4)], [3.0], placeholder_ids=[9]).tolist()
    [[0, 1, 1, 4, 4, 5], [0, 1, 1, 1, 1, 5], [0, 1, 2, 1, 2, 5]]
    """
    is_placeholder = torch.isin(input_ids, torch.tensor(list(placeholder_ids), dtype=input_ids.dtype))
    where = is_placeholder.nonzero().flatten().tolist()
    pieces: list[Tensor] = []
    done, position, cursor = 0, 0, 0  # tokens placed, next position, index into `where`
    for medium, ((t, h, w), step) in enumerate(zip(grids, temporal_steps, strict=True)):
        h, w = h // merge_size, w // merge_size
        count = t * h * w
        run = where[cursor : cursor + count]
        if len(run) < count or run[-1] - run[0] != count - 1:
            raise ValueError(
                f"medium {medium} has a grid of {t}x{h}x{w} tokens, but the prompt does not hold a run of {count} "
                "placeholder tokens for it: the prompt was truncated inside a medium, or media and prompt do not match"
            )
        text = run[0] - done
        pieces.append(torch.arange(position, position + text).expand(3, -1))
        start = position + text
        time = (torch.arange(t, dtype=torch.float64) * step).long()
        axes = torch.meshgrid(time, torch.arange(h), torch.arange(w), indexing="ij")
        pieces.append(torch.stack([axis.flatten() for axis in axes]) + start)
        position, done, cursor = int(pieces[-1].max()) + 1, run[-1] + 1, cursor + count
    pieces.append(torch.arange(position, position + len(input_ids) - done).expand(3, -1))
    return torch.cat(pieces, dim=1)
