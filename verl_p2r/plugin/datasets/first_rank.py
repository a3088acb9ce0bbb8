# SPDX-License-Identifier: Apache-2.0
"""Work that one rank does for all, so that files are probed once and all ranks see the same rows."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def of_first_rank(make: Callable[[], T]) -> T:
    """Return on every rank what `make` returns on the first one.

    Args:
        make: called on the first rank only; its result must be picklable.
    """
    if not torch.distributed.is_initialized():
        return make()
    made = [make() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(made, src=0)
    return made[0]  # type: ignore[return-value]
