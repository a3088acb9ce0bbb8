# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run that was killed while it saved: which one it goes on from, and that its place in the data is
there; verl's own handler, with an engine that writes files as verl's does.
"""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.utils.checkpoint import CheckpointHandler, OrchestrationMode
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager, find_latest_ckpt_path

from verl_p2r.plugin.rl.checkpoints import KINDS, correct_tracker
from verl_p2r.plugin.rl.trainer import ProcessAware

TRACKER = "latest_checkpointed_iteration.txt"


def write_engine(folder: Path, ranks: int = 2, kinds=KINDS) -> None:
    """The files of verl's FSDP engine, in the order in which it writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(ranks):
        for kind in kinds:
            torch.save({"rank": rank}, folder / f"{kind}_world_size_{ranks}_rank_{rank}.pt")
    (folder / "huggingface").mkdir(exist_ok=True)
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": ranks}))


def write_step(root: Path, step: int, rl: bool = True) -> Path:
    folder = root / f"global_step_{step}"
    write_engine(folder / "actor" if rl else folder)
    torch.save({"place": step}, folder / ("data.pt" if rl else "data_0.pt"))
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


FAULTS = {
    "a model is cut off": lambda engine: cut(engine / "model_world_size_2_rank_1.pt"),
    "an optimizer is missing": lambda engine: (engine / "optim_world_size_2_rank_1.pt").unlink(),
    "a rank is missing": lambda engine: [path.unlink() for path in engine.glob("*_rank_1.pt")],
    "rank 0 is missing": lambda engine: [path.unlink() for path in engine.glob("*_rank_0.pt")],
    "rank 0 had not finished": lambda engine: (engine / "fsdp_config.json").unlink(),
    "its config is empty": lambda engine: (engine / "fsdp_config.json").write_text(""),
    "its config is a list": lambda engine: (engine / "fsdp_config.json").write_text("[]"),
    "a file is empty": lambda engine: (engine / "extra_state_world_size_2_rank_0.pt").write_text(""),
}


@pytest.mark.parametrize("rl", [True, False], ids=["rl", "sft"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_incomplete_checkpoint_is_skipped_on_resume(tmp_path, fault, rl):
    for step in (8, 9, 10):
        folder = write_step(tmp_path, step, rl)
    fault(folder / "actor" if rl else folder)
    (tmp_path / TRACKER).write_text("10")
    with pytest.warns(UserWarning, match="names step '10', which is not complete: this run resumes from step 9"):
        correct_tracker(tmp_path)
    assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_9")


@pytest.mark.parametrize("told", ["10", "10\n", " 10"])
def test_tracker_keeps_complete_checkpoint_despite_newer_one(tmp_path, recwarn, told):
    write_step(tmp_path, 10)
    write_step(tmp_path, 20)
    (tmp_path / TRACKER).write_text(told)
    correct_tracker(tmp_path)
    assert (tmp_path / TRACKER).read_text() == told
    assert not recwarn


@pytest.mark.parametrize("told", ["", "\0\0", "-1", "²", "5", None], ids=repr)
def test_invalid_tracker_is_rewritten_to_newest_complete_checkpoint(tmp_path, told):
    write_step(tmp_path, 10)
    write_step(tmp_path, 9)
    if told is not None:
        (tmp_path / TRACKER).write_text(told)
    with pytest.warns(UserWarning, match="newest complete checkpoint"):
        correct_tracker(tmp_path)
    assert (tmp_path / TRACKER).read_text() == "10"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [TRACKER]


def test_checkpoint_with_dataloader_state_is_preferred(tmp_path):
    for step in (8, 9, 10):
        write_step(tmp_path, step)
    (tmp_path / "global_step_10" / "data.pt").unlink()
    cut(tmp_path / "global_step_9" / "data.pt")
    (tmp_path / TRACKER).write_text("7")
    with pytest.warns(UserWarning, match="newest complete checkpoint"):
        correct_tracker(tmp_path)
    assert (tmp_path / TRACKER).read_text() == "8"


def test_error_lists_missing_files_when_no_checkpoint_is_complete(tmp_path):
    for step in (9, 10):
        cut(write_step(tmp_path, step) / "actor" / "optim_world_size_2_rank_0.pt")
    (tmp_path / TRACKER).write_text("10")
    with pytest.raises(RuntimeError, match=r"global_step_9 lacks optim_world_size_2_rank_0\.pt.*resume_mode=disable"):
        correct_tracker(tmp_path)


def test_checkpoints_with_node_local_rank_files_are_left_to_verl(tmp_path):
    for step in (9, 10):
        for path in (write_step(tmp_path, step) / "actor").glob("*_rank_1.pt"):
            path.unlink()
    (tmp_path / TRACKER).write_text("10")
    correct_tracker(tmp_path)
    assert (tmp_path / TRACKER).read_text() == "10"


def test_unfinished_first_checkpoint_is_ignored(tmp_path):
    cut(write_step(tmp_path, 10) / "actor" / "model_world_size_2_rank_0.pt")
    correct_tracker(tmp_path)
    assert not (tmp_path / TRACKER).exists()


@pytest.mark.parametrize("told", ["10", "20", None])
def test_checkpoints_of_other_engines_are_left_to_verl(tmp_path, told):
    (tmp_path / "global_step_10" / "actor" / "dist_ckpt").mkdir(parents=True)
    (tmp_path / "global_step_10.zip").touch()
    if told:
        (tmp_path / TRACKER).write_text(told)
    correct_tracker(tmp_path)
    assert (tmp_path / TRACKER).exists() is (told is not None)
    assert told is None or (tmp_path / TRACKER).read_text() == told


def test_missing_checkpoint_folder_is_ignored(tmp_path):
    correct_tracker(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """The process is gone: nothing after it runs."""


class Engine:
    """Saves as verl's engine does, with its own checkpoint manager's removal; is killed behind that, in one step."""

    def __init__(self, killed_at: int):
        self.killed_at, self.loaded = killed_at, None
        self.manager = object.__new__(BaseCheckpointManager)
        self.manager.previous_saved_paths = []

    def save_checkpoint(self, local_path, remote_path=None, global_step=0, max_ckpt_to_keep=None):
        write_engine(Path(local_path), ranks=1)
        self.manager.register_checkpoint(local_path, max_ckpt_to_keep)
        if global_step == self.killed_at:
            raise Killed

    def load_checkpoint(self, local_path, del_local_after_load=False):
        self.loaded = local_path


class Loader:
    """A stateful dataloader."""

    def __init__(self):
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class SFT:
    """verl's SFT trainer, as far as it saves."""

    def __init__(self, root: Path, engine: Engine):
        self.engine, self.loader = engine, Loader()
        self.handler = CheckpointHandler(
            engine, self.loader, default_local_dir=str(root), max_ckpt_to_keep=1, mode=OrchestrationMode.RAY
        )

    def save(self, step: int) -> None:
        self.loader.place = step
        self.handler.save_checkpoint(step)

    def resume(self) -> int:
        return self.handler.load_checkpoint()


class RL(ProcessAware, PPOTrainerSync):
    """verl's RL trainer with our mixin, as far as it saves."""

    def __init__(self, root: Path, engine: Engine):
        self.engine, self.train_dataloader = engine, Loader()
        self.actor_rollout_wg, self.use_critic, self.trainer_mode = engine, False, "sync"
        trainer = {"default_local_dir": str(root), "default_hdfs_dir": None, "resume_mode": "auto"}
        trainer |= {"max_actor_ckpt_to_keep": 1, "del_local_ckpt_after_load": False}
        self.config = OmegaConf.create({"trainer": trainer, "actor_rollout_ref": {"actor": {"checkpoint": {}}}})
        self.checkpoint_callback = type("Callback", (), {"on_save": lambda *args, **kwargs: None})()

    @property
    def loader(self):
        return self.train_dataloader

    def save(self, step: int) -> None:
        self.loader.place = self.global_steps = step
        self._save_checkpoint()

    def resume(self) -> int:
        self._load_checkpoint()
        return self.global_steps


@pytest.mark.parametrize("trainer", [SFT, RL])
def test_run_killed_before_tracker_update_resumes_from_saved_checkpoint(tmp_path, trainer):
    run = trainer(tmp_path, Engine(killed_at=20))
    run.save(10)
    with pytest.raises(Killed):
        run.save(20)
    assert (tmp_path / TRACKER).read_text() == "10"
    assert not list(tmp_path.glob("global_step_10/**/model_*"))  # verl has removed the one that it names

    again = trainer(tmp_path, Engine(killed_at=0))
    with pytest.warns(UserWarning, match="resumes from step 20"):
        assert again.resume() == 20
    assert again.engine.loaded.startswith(str(tmp_path / "global_step_20"))
    assert again.loader.place == 20
    again.save(30)
    assert (tmp_path / TRACKER).read_text() == "30"
