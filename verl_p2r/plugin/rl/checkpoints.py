# SPDX-License-Identifier: Apache-2.0
"""Lets a run that was killed while saving resume from its newest complete checkpoint.

verl 0.9.1 saves the model, removes surplus checkpoints, saves the position in the data, and finally names the new
checkpoint in `latest_checkpointed_iteration.txt`. A kill in between leaves a tracker file that names a removed
checkpoint: SFT then silently starts from scratch, and RL fails on a missing file. Our trainers therefore save the
position in the data first and correct the tracker file before verl reads it. Remove this module when verl removes old
checkpoints last.

For RL, `trainer.py` calls these functions. For SFT, this module replaces verl's checkpoint handler by a subclass; the
hook on that module loads it.
"""

import json
import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from verl.utils.checkpoint import checkpoint_handler
from verl.utils.checkpoint.checkpoint_manager import get_checkpoint_tracker_filename

KINDS = ("model", "optim", "extra_state")  # kinds of files of a rank


def correct_tracker(folder: str | os.PathLike) -> None:
    """Make verl's tracker file name the newest complete checkpoint, unless the one it names is complete [ours].

    A checkpoint is complete if it has all files of all ranks of verl's FSDP engine. One that also has the position in
    the data is preferred. A folder without files of that engine is left to verl.

    Args:
        folder: `trainer.default_local_dir`; it may be missing.

    Raises:
        RuntimeError: the tracker names a checkpoint, and none in the folder is complete.
    """
    tracker = Path(get_checkpoint_tracker_filename(os.fspath(folder)))
    steps = {int(path.name.rpartition("_")[2]): path for path in Path(folder).glob("global_step_*") if _step(path)}
    if not any(True for path in steps.values() for _ in path.rglob("*_world_size_*_rank_*.pt")):
        return
    named = tracker.read_text(errors="replace").strip() if tracker.exists() else None
    lacking = {step: _lacking(path) for step, path in steps.items()}
    whole = [step for step, what in lacking.items() if what is None]
    if named is not None and named.isdecimal() and int(named) in whole:
        return
    if not whole:
        if named is None:
            return  # the first checkpoint was not finished; verl starts from scratch
        if named.isdecimal() and int(named) in steps and _whole_here(steps[int(named)]):
            return  # files of other ranks may be on the disks of other nodes; verl decides
        raise RuntimeError(
            f"{tracker} names step {named!r}, but no checkpoint next to it is complete: "
            + "; ".join(f"{steps[step].name} lacks {lacking[step]}" for step in sorted(steps))
            + ". Restore one, or set trainer.resume_mode=disable to start from scratch"
        )
    newest = max(whole, key=lambda step: (any(map(zipfile.is_zipfile, steps[step].glob("data*.pt"))), step))
    found = "is missing" if named is None else f"names step {named!r}, which is not complete"
    # `logging` is not used because other libraries in a trainer's process silence the root logger.
    warnings.warn(
        f"{tracker} {found}: this run resumes from step {newest}, the newest complete checkpoint", stacklevel=2
    )
    corrected = tracker.with_name(f"{tracker.name}.tmp")
    corrected.write_text(str(newest))
    corrected.replace(tracker)


def save_place(dataloader: Any, step_folder: str | os.PathLike, name: str) -> None:
    """Save the position in the data, which verl saves only after it has removed an older checkpoint.

    Args:
        dataloader: a stateful data loader.
        step_folder: folder of the checkpoint that is about to be saved; created if missing.
        name: name of the file, the same that verl will write.
    """
    folder = Path(step_folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dataloader.state_dict(), folder / name)


def _step(path: Path) -> bool:
    return path.is_dir() and re.fullmatch(r"global_step_\d+", path.name) is not None


def _lacking(step_folder: Path) -> str | None:
    """The first missing or truncated file; None when the checkpoint is complete."""
    folder = step_folder / "actor" if (step_folder / "actor").is_dir() else step_folder
    try:
        # Rank 0 writes this after its other files; every rank must have the same kinds of files as rank 0.
        ranks = int(json.loads((folder / "fsdp_config.json").read_text("utf-8"))["world_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return "fsdp_config.json"
    names = [[f"{kind}_world_size_{ranks}_rank_{rank}.pt" for kind in KINDS] for rank in range(ranks)]
    kinds = [i for i in range(len(KINDS)) if (folder / names[0][i]).exists()]
    if not kinds:
        return names[0][0]
    needed = (name[i] for name in names for i in kinds)
    return next((name for name in needed if not zipfile.is_zipfile(folder / name)), None)


def _whole_here(step_folder: Path) -> bool:
    """Whether all ranks with files in a folder have the same kinds of files, none of them truncated."""
    kinds: dict[str, set[str]] = {}
    for path in step_folder.rglob("*_world_size_*_rank_*.pt"):
        kind, _, rank = path.stem.partition("_world_size_")
        kinds.setdefault(rank, set()).add(kind if zipfile.is_zipfile(path) else f"{path} is truncated")
    return len({frozenset(found) for found in kinds.values()}) == 1 and all(
        kind in KINDS for found in kinds.values() for kind in found
    )


class SafeCheckpointHandler(checkpoint_handler.CheckpointHandler):
    """The checkpoint handler of verl's SFT trainer that survives a kill at any time."""

    def save_checkpoint(self, step: int) -> None:
        """Save the position in the data, then everything as verl does."""
        if self.is_mp_src_rank_with_outputs:
            folder = Path(self.default_local_dir) / f"global_step_{step}"
            save_place(self.train_dataloader, folder, f"data_{self.dp_rank}.pt")
        super().save_checkpoint(step)

    def _find_latest_checkpoint(self):
        if self.rank == 0:
            correct_tracker(self.default_local_dir)
        if self.mode == checkpoint_handler.OrchestrationMode.SPMD:
            torch.distributed.barrier()  # every rank reads the corrected file
        return super()._find_latest_checkpoint()


checkpoint_handler.CheckpointHandler = SafeCheckpointHandler
