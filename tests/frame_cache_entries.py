# SPDX-License-Identifier: Apache-2.0
"""Entries for the tests of the disk cache."""

from pathlib import Path

import torch

METADATA = {
    "fps": 24000 / 1001,
    "frames_indices": [0, 7, 15],
    "total_num_frames": 16,
    "video_backend": "pyav",
}


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape or (2, 3, 28, 56), dtype=torch.uint8, generator=torch.manual_seed(seed))


def key_of(number: int) -> str:
    return f"{number:064x}"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
