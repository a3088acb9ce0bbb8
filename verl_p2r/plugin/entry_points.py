# SPDX-License-Identifier: Apache-2.0
"""The entry points through which verl and vLLM load this package, and whether they lead anywhere.

vLLM only logs an entry point that fails to load and goes on without it. It would then place every video at the wrong
times, and nothing but a low correlation of trainer and rollout would show it.
"""

from importlib import metadata

GROUPS = ("verl.plugins", "vllm.general_plugins", "vllm.platform_plugins")


def ours(group: str) -> list[metadata.EntryPoint]:
    """Return this package's entry points in a group; several if several installations list it."""
    return [entry for entry in metadata.entry_points(group=group) if entry.value.startswith("verl_p2r.")]


def broken(group: str) -> dict[str, str]:
    """Load this package's entry points of a group.

    Returns:
        Value of an entry point that fails → the error and the remedy.
    """
    found = {}
    for entry in ours(group):
        try:
            entry.load()
        except (ImportError, AttributeError) as error:
            where = getattr(entry.dist, "_path", None)
            found[entry.value] = (
                f"{error}: an older version left it: remove {where or 'its *.egg-info or *.dist-info folder'} and "
                "reinstall verl_p2r"
            )
    return found


def check_entry_points() -> None:
    """Refuse to start a run whose processes would lose a part of this package.

    Raises:
        ValueError: an entry point fails; the message gives the remedy.
    """
    for group in GROUPS:
        for value, error in broken(group).items():
            raise ValueError(f"the entry point {value} of {group} cannot be loaded: {error}")
