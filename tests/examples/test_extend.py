# SPDX-License-Identifier: Apache-2.0
"""The examples that end the pages of docs/extend: each does what its page says."""

import asyncio
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import qwen_models
from omegaconf import OmegaConf
from paths import EXAMPLES, ROOT

EXTEND = EXAMPLES / "extend"
PAGES = ROOT / "docs" / "extend"
sys.path.insert(0, str(EXTEND))

import check_family  # noqa: E402
import check_pin  # noqa: E402
import my_dataset  # noqa: E402
import my_step  # noqa: E402

import verl_p2r  # noqa: E402
from verl_p2r import accuracy as scoring  # noqa: E402
from verl_p2r.accuracy import answer_accuracy  # noqa: E402
from verl_p2r.judge import KNOWN_REQUESTS, JudgeRequest, ask, get_judge  # noqa: E402
from verl_p2r.plugin.hooks import Checked, hook_table  # noqa: E402


def test_every_extension_page_ends_with_its_example():
    shown = {path.read_text(encoding="utf-8").rstrip().splitlines()[-2] for path in PAGES.glob("*.md")}
    assert shown == {f'--8<-- "examples/extend/{path.name}"' for path in EXTEND.glob("*.py")}


def test_example_judge_loads_by_path_and_passes_known_cases():
    judge = get_judge("my_judge:WordsJudge", least=4)
    for value, request in KNOWN_REQUESTS.items():
        assert asyncio.run(ask(judge, request)).value is value
    silent = asyncio.run(judge.judge(JudgeRequest("Which?", "A", "…")))
    assert silent.value is None
    with pytest.raises(ValueError, match="does not fit judge 'my_judge:WordsJudge'"):
        get_judge("my_judge:WordsJudge", leest=2)


@pytest.mark.parametrize(
    ("prediction", "accuracy"),
    [("4 - 8 s", 1.0), ("2 to 6", 2 / 6), ("0-4", 0.0), ("8 - 4", 0.0), ("at the end", 0.0), ("", 0.0)],
)
def test_example_problem_type_scores_time_spans_by_overlap(prediction, accuracy, monkeypatch):
    monkeypatch.setattr(scoring._SCORERS, "_known", dict(scoring._SCORERS._known))  # forgotten after the test
    runpy.run_path(str(EXTEND / "my_problem_type.py"))
    assert answer_accuracy("time span", prediction, "<answer>4 - 8 s</answer>") == pytest.approx(accuracy)


def test_commands_find_example_problem_type_by_entry_point(tmp_path, clips):
    """A process that does not import the module itself: the package's metadata lead to it."""
    package = tmp_path / "site" / "my_problem_type-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: my-problem-type\nVersion: 1.0\n")
    (entry,) = re.findall(r'^"(time span)" = "(.*)"$', (PAGES / "problem-type.md").read_text(), re.MULTILINE)
    (package / "entry_points.txt").write_text(f"[verl_p2r.problem_types]\n{entry[0]} = {entry[1]}\n")
    base = {"problem": "When does it cross?", "problem_type": "time span", "data_type": "video"}
    solutions = ["2 - 4.5 s", "at the end"]
    records = [{**base, "path": clips["slow"].name, "problem_id": i, "solution": s} for i, s in enumerate(solutions)]
    source = tmp_path / "mine.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = ("--kind", "rl", "--out", tmp_path / "out", "--media-root", clips["slow"].parent, "--val-share", "0")
    done = subprocess.run(
        [sys.executable, "-m", "data_tools", "to-parquet", source, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{EXTEND}:{package.parent}", "COLUMNS": "200"},
    )
    assert "2 records read, 1 written" in done.stdout, done.stdout + done.stderr
    assert "time span" in done.stdout
    (row,) = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    truth = row["reward_model"]["ground_truth"]
    assert (row["extra_info"]["problem_type"], truth) == ("time span", "2 - 4.5 s")
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert (reject["line"], reject["reason"]) == (2, "unusable ground truth")


def test_example_dataset_prepends_message_and_screening_counts_it(tmp_path, clips, processor):
    row = {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": "<video>What moves?"}],
        "videos": [{"video": str(clips["quick"]), "fps": 2.0}],
        "problem_type": "numerical",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"index": 0, "split": "train", "question": "What moves?", "facts": ["red"]},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rl.parquet")
    config = OmegaConf.create({"cache_dir": str(tmp_path), "filter_overlong_prompts": False, "return_raw_chat": True})
    dataset = my_dataset.WithSystemMessage([str(tmp_path / "rl.parquet")], processor.tokenizer, config, processor)
    system, user = dataset[0]["raw_prompt"]
    assert system == {"role": "system", "content": my_dataset.SYSTEM}
    assert user["role"] == "user"


def test_example_step_drops_and_lists_long_questions(tmp_path):
    base = {"problem_type": "numerical", "data_type": "video", "path": "a.mp4", "solution": "3"}
    records = [{**base, "problem_id": str(n), "problem": "word " * n} for n in (2, 3, 4)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    report = my_step.short_questions([source], tmp_path / "out", 3)
    assert (report.read, report.written, dict(report.dropped)) == (3, 2, {"question too long": 1})
    dropped = json.loads((tmp_path / "out" / "dropped.jsonl").read_text())
    assert (dropped["problem_id"], dropped["dropped"]["step"]) == ("4", "short_questions")


@pytest.mark.slow
def test_the_family_check_runs_as_a_command(tiny_model):
    command = [sys.executable, str(EXTEND / "check_family.py"), str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=EXTEND.parents[1])
    assert done.returncode == 0, done.stderr
    counted, real = re.fullmatch(r"(\d+) tokens by arithmetic, (\d+) by the processor\n", done.stdout).groups()
    assert counted == real


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "qwen3_5"])
def test_family_check_token_count_matches_processor(family, tmp_path):
    counted, real = check_family.counted_and_real(str(qwen_models.save(tmp_path / family, family)))
    assert counted == real > 8  # more than a token for each frame


def test_the_pin_check_says_what_waits():
    waiting = check_pin.waiting()
    package = Path(verl_p2r.__file__).parent
    saying = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"\bRemove\s[^.]*\swhen\s", path.read_text(encoding="utf-8"))
    }
    assert waiting.keys() == saying
    assert waiting["plugin/rl/advantage.py"].startswith("`process_rewards` when verl passes")


def test_the_page_shows_how_many_hooks_there_are():
    count = sum(len(entry.hooks) for entry in hook_table())
    assert f"all {count} hooks are in verl 0.9.1 as needed" in (PAGES / "raise-the-verl-pin.md").read_text()


def test_the_pin_check_names_a_hook_that_verl_has_changed():
    same, changed = Checked("rl/advantage.py", 1, ()), Checked("rl/trainer.py", 3, ("verl.x is gone",))
    text, good = check_pin.outcome([same, changed])
    assert not good
    assert text.splitlines() == [
        "rl/trainer.py: verl.x is gone",
        "verl 0.9.1 has changed 1 hooks: adapt these files and hooks.yaml",
    ]
    assert check_pin.outcome([same]) == (
        "all 1 hooks are in verl 0.9.1 as needed; now run verl-p2r doctor and make test",
        True,
    )
