# SPDX-License-Identifier: Apache-2.0
"""A run that was killed while it saved resumes from its newest whole checkpoint.

verl 0.9.1 saves the model, removes the checkpoints that are one too many, saves the place in the data, and last names
the new checkpoint in `latest_checkpointed_iteration.txt`. A kill in between leaves a file that names a checkpoint that
is gone: SFT then starts from scratch without a word, and RL ends with a missing file. So our trainers save the place in
the data first, and correct that file before verl reads it. Can go when verl removes a checkpoint last.

RL calls these functions in its trainer, `trainer.py`. SFT has no class of ours there, so this module, loaded by the
hook on verl's checkpoint handler, puts a subclass in its place.
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

KINDS = ("model", "optim", "extra_state")  # of a rank's files


def correct_tracker(folder: str | os.PathLike) -> None:
    """Have verl's tracker file name the newest whole checkpoint, unless the one that it names is whole. [ours]

    Whole are those with all files of all ranks of verl's FSDP engine; of them, one that also has the place in the data
    is preferred. A folder without a file of that engine is left as it is: verl decides.

    Args:
        folder: `trainer.default_local_dir`; it may be missing.

    Raises:
        RuntimeError: the tracker names a checkpoint, and none in the folder is whole.
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
            return  # the first checkpoint was not finished: verl starts anew
        if named.isdecimal() and int(named) in steps and _whole_here(steps[int(named)]):
            return  # other ranks' files may be on the disks of other nodes: verl decides
        raise RuntimeError(
            f"{tracker} names step {named!r}, but no checkpoint beside it is whole: "
            + "; ".join(f"{steps[step].name} lacks {lacking[step]}" for step in sorted(steps))
            + ". Restore one, or set trainer.resume_mode=disable to start anew"
        )
    newest = max(whole, key=lambda step: (any(map(zipfile.is_zipfile, steps[step].glob("data*.pt"))), step))
    found = "is missing" if named is None else f"names step {named!r}, which is not whole"
    # Not through `logging`: what else is loaded in a trainer's process silences the root logger.
    warnings.warn(f"{tracker} {found}: this run goes on from step {newest}, the newest whole checkpoint", stacklevel=2)
    corrected = tracker.with_name(f"{tracker.name}.tmp")
    corrected.write_text(str(newest))
    corrected.replace(tracker)


def save_place(dataloader: Any, step_folder: str | os.PathLike, name: str) -> None:
    """Save the place in the data where verl will save it once more, after it has removed an older checkpoint.

    Args:
        dataloader: a stateful one.
        step_folder: of the checkpoint that is about to be saved; it is made.
        name: of the file.
    """
    folder = Path(step_folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dataloader.state_dict(), folder / name)


def _step(path: Path) -> bool:
    return path.is_dir() and re.fullmatch(r"global_step_\d+", path.name) is not None


def _lacking(step_folder: Path) -> str | None:
    """The first file that a resumed run would miss or find cut off; None when the checkpoint is whole."""
    folder = step_folder / "actor" if (step_folder / "actor").is_dir() else step_folder
    try:
        # Rank 0 writes this behind its other files: what rank 0 has is what every rank must have.
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
    """Whether the ranks that have files in a folder have the same kinds of them, none cut off."""
    kinds: dict[str, set[str]] = {}
    for path in step_folder.rglob("*_world_size_*_rank_*.pt"):
        kind, _, rank = path.stem.partition("_world_size_")
        kinds.setdefault(rank, set()).add(kind if zipfile.is_zipfile(path) else f"{path} is cut off")
    return len({frozenset(found) for found in kinds.values()}) == 1 and all(
        kind in KINDS for found in kinds.values() for kind in found
    )


class SafeCheckpointHandler(checkpoint_handler.CheckpointHandler):
    """The checkpoint handler of verl's SFT trainer, see the module."""

    def save_checkpoint(self, step):
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
