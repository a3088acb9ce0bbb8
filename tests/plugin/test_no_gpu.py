# SPDX-License-Identifier: Apache-2.0
"""A run without a GPU and without `VERL_PLATFORM`: the message that ends it says what to set."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from verl.plugin import platform

from verl_p2r.plugin import no_gpu


@pytest.mark.slow
@pytest.mark.skipif(bool(torch.version.cuda or torch.version.hip), reason="RL may then run on a head without a GPU")
@pytest.mark.parametrize("trainer", no_gpu.TRAINERS)
def test_trainer_without_gpu_exits_with_remedy(trainer, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    done = subprocess.run(
        [sys.executable, "-m", trainer, "--config-path", "pkg://verl_p2r.config", "--config-name", "p2r_ppo"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == f"verl_p2r: {no_gpu.MESSAGE}"


class Seen:
    def __init__(self, available: bool):
        self.is_available = lambda: available


@pytest.mark.parametrize(
    ("started", "found", "built_for", "ends", "warned"),
    [
        ("verl.trainer.main_ppo", False, None, True, False),
        ("verl.trainer.sft_trainer", False, None, True, False),
        ("verl.trainer.sft_trainer", False, "13.0", True, False),
        ("verl.trainer.main_ppo", False, "13.0", False, True),
        ("verl.trainer.main_ppo", True, "13.0", False, False),
        ("verl.trainer.sft_trainer", True, "13.0", False, False),
        ("ray/_private/workers/default_worker.py", False, "13.0", False, False),
        ("verl.model_merger", False, None, False, False),
    ],
)
def test_missing_gpu_ends_only_trainers_that_need_one(monkeypatch, started, found, built_for, ends, warned):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", started, "trainer.nnodes=1"])
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(platform, "get_platform", lambda: Seen(found))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if ends:
            with pytest.raises(SystemExit, match="set VERL_PLATFORM=cpu"):
                no_gpu.refuse()
        else:
            no_gpu.refuse()
    assert [("other nodes" in str(warning.message)) for warning in said] == [True] * warned


@pytest.mark.parametrize(("chosen", "asked"), [("cpu", False), ("nvidia", False), ("", True), (None, True)])
def test_gpu_check_is_skipped_when_platform_is_set(chosen, asked):
    script = "import sys, verl_p2r.plugin; print('verl_p2r.plugin.no_gpu' in sys.modules)"
    env = {**os.environ, "VERL_PLATFORM": chosen or ""}
    if chosen is None:
        del env["VERL_PLATFORM"]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == [str(asked)]
