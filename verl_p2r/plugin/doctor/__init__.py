# SPDX-License-Identifier: Apache-2.0
"""`verl-p2r doctor`: checks what a run will need, before it starts; each fault comes with a remedy.

Facts about the machine are collected first, and each check is a small function of such facts. Only the checks of a
run import verl and torch in this process, because a broken installation must still get its report.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from verl_p2r.plugin import on_cpu
from verl_p2r.plugin.doctor import gpu_facts, host
from verl_p2r.plugin.doctor.finding import Finding
from verl_p2r.plugin.doctor.gpus import check_gpus
from verl_p2r.plugin.doctor.installation import (
    check_entry_points,
    check_hooks,
    check_registrations,
    check_versions,
)

if TYPE_CHECKING:
    from verl_p2r.plugin.plan.launches import Launch

__all__ = ["INSTALLATION", "Finding", "examine"]

INSTALLATION: tuple[Callable[[], Iterable[Finding]], ...] = (
    check_versions,
    check_entry_points,
    check_registrations,
    check_hooks,
)
"""Checks of the installation, in the order of the report; a new one is added here."""


def examine(launch: "Launch | None" = None) -> Iterator[Finding]:
    """Check the machine, the installation, and a run if one is named.

    Args:
        launch: the run; None to check the machine and the installation alone.

    Yields:
        One finding per line of the report, causes before their consequences.
    """
    facts = None if on_cpu() else gpu_facts.collect()
    if facts is not None:
        yield from check_gpus(facts, launch is None or _needs_flash_attention(launch))
    for check in INSTALLATION:
        yield from check()
    yield from host.check_host(host.collect())
    if launch is not None:
        from verl_p2r.plugin.doctor.run import check_run

        yield from check_run(launch, len(facts.torch.capabilities) if facts is not None else None)


def _needs_flash_attention(launch: "Launch") -> bool:
    """Return whether a launch's model attends with flash-attn, which is verl's default."""
    overrides = launch.model.get("override_config") or {}
    return overrides.get("attn_implementation", "flash_attention_2") == "flash_attention_2"
