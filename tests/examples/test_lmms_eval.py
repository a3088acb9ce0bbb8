# SPDX-License-Identifier: Apache-2.0
"""The door to lmms-eval: its own scorers on our replies, and its requests through our frames.

lmms-eval cannot be installed with the rest by pip's rules, so most of this file is skipped unless somebody did it by
hand: `pip install --no-deps lmms-eval==0.7.3` and what its imports then ask for.
"""

import re
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import benchmark_files
import pytest
from paths import ROOT

from verl_p2r.accuracy import answer_text

sys.path.insert(0, str(ROOT / "examples" / "lmms_eval"))

from lmms_p2r.tasks import ANSWER, TASKS, write_tasks

needs_lmms_eval = pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
OBSERVATION = "Based on the question, a man opens a door. He does this in 3 steps: A, then C. Yes, no, B. Option 2."

OPTIONS = ["A. red", "B. green", "C. blue", "D. grey"]
LISTED = "\n".join(OPTIONS)
VIDEO_MME = {"options": OPTIONS, "answer": "B", "videoID": "v", "question_id": "1", "duration": "short"}
VIDEO_MME |= dict.fromkeys(("domain", "sub_category", "task_type"), "x")
MMVU = {"id": "1", "question_type": "multiple-choice", "answer": "B", "metadata": {"subject": "Art"}}
MMVU |= {"video_path": "videos/Art/1.mp4"}
MMVU |= {"choices": dict(zip("ABCDE", ("red", "green", "blue", "grey", "pink"), strict=True))}
VIDEO_MMMU = {"id": "validation_Art_1", "options": OPTIONS, "answer": "B", "question_type": "multiple-choice"}
CAPTIONS = {"question": "Which?\nOption 1: red\nOption 2: green", "answer": "Option 2: green"}
TEMPCOMPASS = {"video_id": "v", "dim": "order"}
CASES = {  # task → a document in the published form, the right answer, a wrong one
    "vsibench": ({"question_type": "route_planning", "options": OPTIONS, "ground_truth": "B"}, "B", "A"),
    "videomme": (VIDEO_MME, "B", "A"),
    "mmvu_val": (MMVU, "B", "C"),
    "video_mmmu_adaptation": (VIDEO_MMMU, "B", "A"),
    "tempcompass_multi_choice": ({**TEMPCOMPASS, "question": f"Which?\n{LISTED}", "answer": "B. green"}, "B", "A"),
    "tempcompass_yes_no": ({**TEMPCOMPASS, "answer": "no"}, "no", "yes"),
    "tempcompass_caption_matching": ({**TEMPCOMPASS, **CAPTIONS}, "Option 2", "Option 1"),
    "mvbench_action_antonym": ({"candidates": ["red", "green", "blue"], "answer": "green"}, "B", "A"),
}


def reply(answer):
    return f"<observation>{OBSERVATION}</observation>\n<think>A or B? I say C.</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize(
    "text", [reply("B"), reply(" green\n"), "B", "It is green.", "<answer>A</answer><answer>B</answer>"]
)
def test_the_pattern_finds_the_answer_that_we_read(text):
    first = re.findall(ANSWER, text)[0]
    assert next(filter(None, first)).strip() == answer_text(text)


@pytest.mark.parametrize("text", ["<observation>A man", reply("")[:-5], "<think>B</think>", "<answer>B"])
def test_the_pattern_finds_nothing_in_a_reply_that_was_cut_off(text):
    assert re.findall(ANSWER, text) == []


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """The folder of tasks, where lmms-eval's own modules can be imported."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert write_tasks(tmp_path / "tasks") == [f"p2r_{task}" for task in TASKS]
    return tmp_path / "tasks"


def score_of(metrics):
    """The score of one document, wherever a task's `process_results` puts it."""
    value = next(iter(metrics.values()))
    if "parsed_pred" in value:
        return float(value["parsed_pred"] == value["answer"])
    return float(next(value[name] for name in ("score", "correct", "rating", "accuracy") if name in value))


@needs_lmms_eval
@pytest.mark.parametrize("name", CASES)
def test_its_scorers_read_our_replies(tasks, name):
    """With the tasks' filter, lmms-eval's own code scores the answer and nothing before it."""
    from lmms_eval.filters import build_filter_ensemble
    from lmms_eval.utils import load_yaml_config

    config = load_yaml_config(str(tasks / f"p2r_{name}.yaml"))
    document, right, wrong = CASES[name]
    document = {"question": "Which?", **document}
    assert config["task"] == f"p2r_{name}"
    [pipeline] = config["filter_list"]
    steps = [[step["function"], {k: v for k, v in step.items() if k != "function"}] for step in pipeline["filter"]]
    instances = [SimpleNamespace(resps=[reply(answer)], filtered_resps={}, doc={}) for answer in (right, wrong)]
    build_filter_ensemble("answer", steps).apply(instances, None)
    found = [instance.filtered_resps["answer"] for instance in instances]
    assert found == [right, wrong]
    assert [score_of(config["process_results"](dict(document), [answer])) for answer in found] == [1, 0]
    texts = config.get("lmms_eval_specific_kwargs")
    prompt = config["doc_to_text"](document, *([{**texts, **texts["default"]}] if texts else []))
    assert "Which?" in prompt
    assert not re.search("directly|only the letter|intermediate", prompt, re.IGNORECASE)


@needs_lmms_eval
def test_the_model_is_found_by_its_name_and_sends_our_frames(tmp_path, judge_server):
    from lmms_eval.models.registry_v2 import ModelRegistryV2
    from lmms_p2r import manifest

    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    model = registry.get_model_class("p2r")(model="judge", base_url=judge_server.base_url, batch_size=1)
    colours = {"a.mp4": "red", "b.mp4": "green", "c.mp4": "blue"}
    benchmark_files.write_videos(tmp_path, colours)
    model.task_dict = {"p2r_videomme": {"test": [{"video": str(tmp_path / name)} for name in colours]}}
    question = f"What colour has the ball?\nOptions:\n{LISTED}\n"
    requests = [
        SimpleNamespace(args=(question, {}, lambda doc: [doc["video"]], place, "p2r_videomme", "test"))
        for place in range(3)
    ]
    assert [answer_text(text) for text in model.generate_until(requests)] == ["A", "B", "C"]
    with pytest.raises(NotImplementedError, match="only generates"):
        model.loglikelihood([])


def test_the_package_names_its_entry_point():
    text = (ROOT / "examples" / "lmms_eval" / "pyproject.toml").read_text()
    assert '[project.entry-points."lmms_eval.models"]\np2r = "lmms_p2r:manifest"' in text
