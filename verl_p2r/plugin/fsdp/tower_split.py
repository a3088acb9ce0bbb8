# SPDX-License-Identifier: Apache-2.0
"""The vision tower's work, split by frame over the ranks of a Ulysses group.

verl 0.9.1 gives every rank of a sequence-parallel group the whole micro-batch and runs the whole tower on each: only
the language model's sequence is split. In Qwen2-VL, Qwen2.5-VL and Qwen3-VL a patch attends to its own temporal grid
only, and position embeddings do not depend on time, so a video of t temporal grids computes exactly what t images
would. Each rank therefore takes consecutive temporal grids, and the features are gathered.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

Tower = Callable[[Tensor, Tensor], list[Tensor]]


def frames_of(grids: Tensor) -> Tensor:
    """Write each medium as one grid for each of its temporal grids.

    Args:
        grids: grids (t, h, w). Shape: (media, 3), int64.

    Returns:
        Shape: (sum of t, 3), int64, each with t = 1.
    """
    frames = grids.repeat_interleave(grids[:, 0], 0)
    return torch.cat([torch.ones_like(frames[:, :1]), frames[:, 1:]], 1)


def shares(patches: Sequence[int], ranks: int) -> list[int]:
    """Cut consecutive frames into one share for each rank, with about equally many patches.

    Args:
        patches: patches of each frame.
        ranks: number of shares.

    Returns:
        The first frame of each share, and at last the number of frames; a share may be empty.
    """
    ends = torch.tensor([0, *patches]).cumsum(0)
    targets = torch.arange(1, ranks) * ends[-1] / ranks
    cuts = [int((ends - target).abs().argmin()) for target in targets]
    return [0, *cuts, len(patches)]


def run_split(tower: Tower, pixels: Tensor, grids: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """Run the tower on this rank's frames, and gather the features of all; gradients go back to their rank.

    Args:
        tower: gives features, and those for deepstack, of patches and grids.
        pixels: patches of all media, equal on every rank of the group. Shape: (patches, width).
        grids: grids (t, h, w) of the media. Shape: (media, 3), int64.
        group: the sequence-parallel ranks.

    Returns:
        The features of all media, and those for deepstack. Each Shape: (features, width).
    """
    frames = frames_of(grids)
    patches = frames.prod(-1).tolist()
    cuts = shares(patches, dist.get_world_size(group))
    sizes = [sum(patches[a:b]) for a, b in pairwise(cuts)]
    rank = dist.get_rank(group)
    start, size = sum(sizes[:rank]), sizes[rank]
    mine = slice(cuts[rank], cuts[rank + 1]) if size else slice(0, 1)  # FSDP's collectives need a call on every rank
    made = tower(pixels[start : start + size] if size else pixels[: patches[0]], frames[mine])
    area = (size or patches[0]) // len(made[0])  # patches that are merged into one feature
    local = torch.cat(made, -1)[: size // area]
    longest = max(sizes) // area
    gathered = all_gather(torch.nn.functional.pad(local, (0, 0, 0, longest - len(local))), group)
    whole = torch.cat([part[: n // area] for part, n in zip(gathered, sizes, strict=True)])
    return list(whole.split([part.shape[-1] for part in made], -1))
