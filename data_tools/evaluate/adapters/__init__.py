# SPDX-License-Identifier: Apache-2.0
"""One small file for each benchmark, which reads its official files, as downloaded, into items."""

from collections.abc import Mapping
from pathlib import Path

from data_tools.evaluate.adapters import (
    mmvu,
    mvbench,
    tempcompass,
    vcr_bench,
    video_mme,
    video_mmmu,
    video_r1,
    vsi_bench,
)
from data_tools.evaluate.adapters.base import Adapter, Item

__all__ = ["ADAPTERS", "Adapter", "Item", "find_adapter"]

_MODULES = (vsi_bench, video_mmmu, mmvu, vcr_bench, mvbench, tempcompass, video_mme, video_r1)
ADAPTERS: Mapping[str, Adapter] = {
    adapter.name: adapter for adapter in (*(module.ADAPTER for module in _MODULES), video_mmmu.QUESTION_ONLY)
}
"""Every adapter by its name on the command line; `video_r1` reads Video-R1's own files."""


def find_adapter(name: str, source: Path) -> Adapter:
    """Choose an adapter.

    Args:
        name: one of `ADAPTERS`.
        source: folder of a download, or for `video_r1` a JSON file.

    Raises:
        ValueError: there is no such adapter, or no such source.
    """
    if name not in ADAPTERS:
        raise ValueError(f"benchmark {name!r} is unknown: name one of {', '.join(ADAPTERS)}")
    if name == "video_r1":
        if not source.is_file():
            raise ValueError(f"{source} is not a file: name one of Video-R1-eval's, such as eval_mvbench.json")
        return video_r1.adapter_of(source)
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder: name the one that {ADAPTERS[name].hub} was downloaded to")
    return ADAPTERS[name]
