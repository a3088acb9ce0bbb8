# SPDX-License-Identifier: Apache-2.0
"""Checks of one run: that its GPUs, model, data and media are here, that its judge answers, that its disk suffices."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from verl_p2r.chat.client import Unanswered
from verl_p2r.judge.health import check_judge
from verl_p2r.judge.openai_judge import OpenAIJudge
from verl_p2r.judge.registry import get_judge
from verl_p2r.media.plan import MediaError
from verl_p2r.planner import Job
from verl_p2r.plugin.doctor.finding import Finding
from verl_p2r.plugin.doctor.host import disk_of
from verl_p2r.plugin.doctor.model_folder import check_model, find_model
from verl_p2r.plugin.plan.from_config import plan_of
from verl_p2r.plugin.plan.launches import Launch
from verl_p2r.plugin.plan.tokens import Options, listed, samples
from verl_p2r.plugin.rl.verl_judge import asks_verl
from verl_p2r.settings import P2RSettings
from verl_p2r.sizes import GIB

ROWS = 64  # rows of each file set that are screened


def check_run(launch: Launch, gpus: int | None) -> Iterator[Finding]:
    """Check everything that a launch names.

    Args:
        launch: the launch; references in its config are resolved.
        gpus: how many GPUs torch sees; None on the CPU platform.
    """
    OmegaConf.resolve(launch.config)
    if gpus is not None:
        yield from check_gpu_count(launch, gpus)
    path = launch.model.path
    yield from check_model("model", path)
    if launch.trains_rl and launch.config.reward.reward_model.enable:
        yield from check_model("judge's model", launch.config.reward.reward_model.model_path, has_processor=False)
    yield from check_data(launch, find_model(path))
    yield from check_checkpoints(launch)
    if launch.trains_rl:
        yield from check_judge_answers(launch)


def check_gpu_count(launch: Launch, gpus: int) -> Iterator[Finding]:
    """Check that this node has the GPUs that the launch asks of it."""
    trainer = launch.config.trainer
    asked = launch.gpus if trainer.nnodes == 1 else trainer.n_gpus_per_node
    remedy = f"set trainer.n_gpus_per_node={gpus} (GPUS={gpus} for a script), or use a machine with more GPUs"
    found = f"{asked} of {gpus} on this node"
    yield Finding("GPUs of the run", found, remedy if asked > gpus else "")


def check_data(launch: Launch, model: Path | None) -> Iterator[Finding]:
    """Check that the files of rows are here, and that the first rows and their media can be used.

    Args:
        launch: the launch.
        model: folder of the model, whose processor is needed to screen rows; None when it is not here.
    """
    data = launch.config.data
    root = data.p2r.media_root
    if root and not Path(root).expanduser().is_dir():
        remedy = "set data.p2r.media_root (MEDIA for a script) to the folder that the rows' paths start from"
        yield Finding("media", f"{root}: there is no such folder", remedy)
        return
    for split in ("train", "val"):
        files = listed(data.get(f"{split}_files") or [])
        if not files:
            continue
        what = f"data: {split}"
        if missing := [file for file in files if not Path(file).expanduser().is_file()]:
            remedy = f"make it with verl-p2r-data, or set data.{split}_files (DATA for a script)"
            yield Finding(what, f"{missing[0]}: there is no such file", remedy)
        elif model is None:
            yield Finding(what, f"{len(files)} files; the model's processor is needed to read them")
        else:
            yield _screened(launch, files, model, what)


def _screened(launch: Launch, files: list[str], model: Path, what: str) -> Finding:
    from verl.utils import hf_processor

    try:
        rows = len(list(samples(launch, files, hf_processor(str(model)), ROWS)))
    except (ValueError, MediaError, OSError) as error:
        root = launch.config.data.p2r.media_root or "the working directory"
        return Finding(what, str(error), f"repair the rows or fetch their media; relative paths start from {root}")
    return Finding(what, f"{rows} rows read, their media are there")


def check_checkpoints(launch: Launch) -> Iterator[Finding]:
    """Check that the disk holds the checkpoints that a run keeps, and the one that it writes meanwhile."""
    folder = Path(launch.config.trainer.default_local_dir).expanduser()
    try:
        size = checkpoint_bytes(launch, plan_of(launch, Options(rows=0)).job)
    except ValueError:  # the model is not here, which is reported already, or `verl-p2r plan` says what is wrong
        return
    kept = launch.config.trainer.get(_limit(launch))
    disk = disk_of("checkpoints of the run", folder, "trainer.default_local_dir")
    full = size * ((kept or 1) + 1) > disk.free
    remedy = f"keep fewer, save less (checkpoint.save_contents), or choose another disk with {disk.setting}"
    found = f"{disk.free / GIB:.0f} GiB free in {folder}; {kept or 1} + 1 of {size / GIB:.1f} GiB"
    unlimited = not kept and _saves(launch)
    if unlimited:
        found += ", and all others, because all are kept"
    if unlimited and not full:
        remedy = f"set trainer.{_limit(launch)}, if that is too many"
    yield Finding(f"disk: {disk.use}", found, remedy if full or unlimited else "", fatal=full)


def checkpoint_bytes(launch: Launch, job: Job) -> float:
    """Return the bytes of a checkpoint: weights, the optimizer's two moments, and the weights for transformers."""
    node = launch.config.actor_rollout_ref.actor if launch.trains_rl else launch.config
    saved, width = node.checkpoint.save_contents, job.engine.param_bytes
    parts = {"model": width * job.all_params, "optimizer": 2 * width * job.trained, "hf_model": width * job.all_params}
    return sum(size for name, size in parts.items() if name in saved)


def _saves(launch: Launch) -> bool:
    """Return whether a run saves checkpoints before its end; in SFT, `save_freq` may be `after_each_epoch`."""
    every = launch.config.trainer.save_freq
    return not isinstance(every, int) or every > 0


def _limit(launch: Launch) -> str:
    """Return the name of the setting that limits how many checkpoints a run keeps."""
    return "max_actor_ckpt_to_keep" if launch.trains_rl else "max_ckpt_to_keep"


def check_judge_answers(launch: Launch) -> Iterator[Finding]:
    """Check that the judge answers two questions whose verdicts are known."""
    settings = P2RSettings.from_mapping(launch.config.algorithm.p2r)
    name = settings.judge.name
    if not settings.perception.enabled:
        return
    if asks_verl(settings):
        combined = "" if name == "verl" else f"{name}, which is checked when the run starts: "
        yield Finding("judge", f"{combined}verl serves a model during the run")
        return
    try:
        judge = get_judge(name, **settings.judge.kwargs)
        if not hasattr(judge, "ask_anew"):
            yield Finding("judge", f"{name} needs no server")
            return
        asyncio.run(_ask(judge, name))
    except (ValueError, RuntimeError, Unanswered, OSError) as error:
        remedy = "start its server, or correct algorithm.p2r.judge.kwargs (JUDGE_URLS and JUDGE_MODEL for a script)"
        yield Finding("judge", str(error), remedy)
        return
    where = f" at {', '.join(judge.base_urls)}" if isinstance(judge, OpenAIJudge) else ""
    yield Finding("judge", f"{name}{where}: two known questions got the right verdicts")


async def _ask(judge: Any, name: str) -> None:
    """Ask as a run does at its start; raise if the judge cannot be reached or gives a wrong verdict."""
    try:
        if hasattr(judge, "reach"):
            await judge.reach()
        await check_judge(judge, name)
    finally:
        if hasattr(judge, "aclose"):
            await judge.aclose()
