# SPDX-License-Identifier: Apache-2.0
"""The scripts in `examples/` take any path: what Hydra makes of it is the path, whatever is in its name."""

import subprocess
from pathlib import Path

import pytest
from example_scripts import CASES, EXAMPLES, JUDGE, START, call, read
from hydra.core.override_parser.overrides_parser import OverridesParser
from typer.testing import CliRunner

import verl_p2r.plugin  # noqa: F401
from verl_p2r.plugin.cli import app

NAMES = [
    "视频数据",
    "vidéo",
    "lr=1e-6",
    "a,b",
    "a(1)",
    "a[1]",
    "{a}",
    "a:b",
    "a#b",
    "a b",
    "  a  ",
    "a\tb",
    "it's",
    "''",
    'say "x"',
    "`x`",
    "$HOME",
    "$",
    "a&b",
    "a;b|c<d>",
    "a\\b",
    "a\\",
    "a\\\\",
    "a\\'b",
    "a\\\\'",
    "!x",
    "~x",
    "*?",
    "%s%n",
    "-x",
    "null",
    "true",
    "1e5",
    "???x",
    "@x",
]
MONSTERS = ["出力 (1), a=b #2: it's $x & [y] {z}", "'\\' say \"x\"\\"]


@pytest.mark.parametrize("name", NAMES)
def test_quoted_shell_value_reaches_hydra_unchanged(name, tmp_path):
    script = f'source "{EXAMPLES}/paths.bash"; quoted "$1"; echo; files "$1"'
    done = subprocess.run(["bash", "-euc", script, "x", name], capture_output=True, text=True, check=True, cwd=tmp_path)
    parser = OverridesParser.create()
    read = [parser.parse_override(f"key={line}").value() for line in done.stdout.split("\n")]
    assert read == [name, name]


def test_empty_value_becomes_null_and_file_list_is_kept(tmp_path):
    script = f'source "{EXAMPLES}/paths.bash"; quoted ""; files "[a.parquet,b.parquet]"'
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "null\n[a.parquet,b.parquet]"


@pytest.mark.parametrize("name", ["a${b}", "${oc.env:HOME}", "a\nb"])
@pytest.mark.parametrize("variable", ["DATA", "OUT", "MODEL", "TRAIN", "CACHE"])
def test_path_that_verl_config_cannot_hold_is_refused(name, variable, tmp_path):
    done, command = call("pa_grpo_7b.sh", {**START, variable: name}, tmp_path)
    assert done.returncode == 2
    assert not command
    assert "cannot be written in verl's config: rename it" in done.stderr


SCRIPTS = sorted({case.script for case in CASES} - {"ablation.sh"})  # which starts two of the others


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("monster", MONSTERS)
def test_example_scripts_accept_any_path(script, monster, tmp_path):
    names = ("DATA", "MEDIA", "OUT", "CACHE", "MODEL", "VERDICTS")
    paths = {name: str(tmp_path / f"{monster}{name}" / monster) for name in names}
    Path(paths["MODEL"]).mkdir(parents=True)
    done, command = call(script, {**JUDGE, "JUDGE_MODEL": monster, **paths}, tmp_path)
    assert done.returncode == 0, done.stderr
    config = read(command).config
    rl = "sft" not in script
    model = config.actor_rollout_ref.model if rl else config.model
    files = f"{paths['DATA']}/{'rl' if rl else 'sft'}"
    assert (config.data.train_files, config.data.val_files) == (f"{files}/train.parquet", f"{files}/val.parquet")
    assert config.data.p2r.media_root == paths["MEDIA"]
    assert config.data.p2r.media_cache.directory == paths["CACHE"]
    assert model.path == paths["MODEL"]
    assert config.trainer.default_local_dir == f"{paths['OUT']}/checkpoints"
    assert config.trainer.experiment_name == monster
    if rl and script != "pa_grpo_7b_self.sh":  # has no judge's model
        judge = config.algorithm.p2r.judge.kwargs.get("model", config.reward.reward_model.model_path)
        assert judge == monster
    if rl:
        assert config.trainer.validation_data_dir == f"{paths['OUT']}/validation"
    if script == "pa_grpo_7b_judge_external.sh":
        assert config.algorithm.p2r.judge.kwargs.cache_file == paths["VERDICTS"]


@pytest.mark.parametrize("script", ["rl.sh", "sft.sh"])
@pytest.mark.parametrize("monster", MONSTERS)
def test_quickstart_scripts_accept_any_path(script, monster, tmp_path):
    paths = {name: str(tmp_path / f"{monster}{name}" / monster) for name in ("DATA", "OUT", "MODEL")}
    done, command = call(f"quickstart/{script}", paths, tmp_path)
    assert done.returncode == 0, done.stderr
    config = read(command).config
    assert config.data.train_files == f"{paths['DATA']}/{script[:-3]}_train.parquet"
    assert (config.actor_rollout_ref.model if script == "rl.sh" else config.model).path == paths["MODEL"]
    assert config.trainer.default_local_dir == f"{paths['OUT']}/checkpoints"


@pytest.mark.parametrize("monster", MONSTERS)
def test_script_with_unusual_paths_can_be_planned(monster, tmp_path):
    _, command = call("pa_grpo_7b.sh", {"MODEL": f"{monster}model", "DATA": f"{monster}data", "OUT": monster}, tmp_path)
    result = CliRunner().invoke(app, ["plan", "--model", "Qwen2.5-VL-7B", "--rows", "0", "--", *command])
    assert result.exit_code == 0, result.output
