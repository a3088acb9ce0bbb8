# SPDX-License-Identifier: Apache-2.0
"""`actor.use_prefix_grouper` is a setting that neither the v1 trainers nor the engines read."""

from reproductions import _sources

THEN = (
    "compare verl's shared prefix with verl_p2r/plugin/fsdp/{shared_prefix,attention,balance}.py: if it serves video "
    "(three-axis positions, pixels once for a prompt), ours can go"
)
IN_USE = ("trainer/ppo/v1/", "trainer/main_ppo", "workers/")


def fault() -> str | None:
    """Look for code in the v1 trainers, the workers and the engines that reads the setting."""
    from verl.workers.config import ActorConfig

    if "use_prefix_grouper" not in ActorConfig.__dataclass_fields__:
        return None
    readers = _sources.readers("use_prefix_grouper")
    if any(file.startswith(IN_USE) for file in readers):
        return None
    return f"neither the v1 trainers nor the workers read use_prefix_grouper; these files do: {', '.join(readers)}"
