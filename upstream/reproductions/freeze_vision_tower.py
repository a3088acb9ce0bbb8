# SPDX-License-Identifier: Apache-2.0
"""`actor.freeze_vision_tower` is a setting that no code of verl reads."""

from reproductions import _sources

THEN = (
    "if verl freezes the tower, freeze_actor, freeze and check_strategy in verl_p2r/plugin/fsdp/vision_tower.py can "
    "go, and step_features.py asks verl's flag; if verl has removed the setting, they stay, under a key that is ours"
)


def fault() -> str | None:
    """Look for code that reads the setting, and for a field that could carry it to the engine."""
    from verl.workers.config import ActorConfig, FSDPEngineConfig

    declared = "freeze_vision_tower" in ActorConfig.__dataclass_fields__
    carried = "freeze_vision_tower" in FSDPEngineConfig.__dataclass_fields__
    if not declared or carried or _sources.readers("freeze_vision_tower"):
        return None
    return "ActorConfig declares freeze_vision_tower, and no file of verl reads it: the tower is trained all the same"
