# SPDX-License-Identifier: Apache-2.0
"""Judges and problem types that users add: by decorator, by entry point, and the errors in between."""

import asyncio
import math
import sys

import pytest

from verl_p2r import accuracy
from verl_p2r.accuracy import PROBLEM_TYPES, answer_accuracy, problem_types, register_problem_type
from verl_p2r.data.columns import rl_columns
from verl_p2r.data.errors import RowError
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record
from verl_p2r.data.rows import Row
from verl_p2r.judge import JudgeRequest, get_judge
from verl_p2r.judge import registry as judges
from verl_p2r.registry import Registry

MODULE = """
from verl_p2r.accuracy import register_problem_type
from verl_p2r.judge import Verdict


@register_problem_type("parity")
def parity(prediction, solution, options):
    return float(int(prediction) % 2 == int(solution) % 2)


class Parity:
    async def judge(self, request):
        return Verdict(True, "even")
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Registries as they are in a new process."""
    for registry in (accuracy._SCORERS, judges._JUDGES):
        monkeypatch.setattr(registry, "_known", dict(registry._known))
        monkeypatch.setattr(registry, "_entries", None)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(name, "[group]\\nname = module:attribute")`: a package on the path, with its module and metadata."""

    def install(name: str, entries: str) -> None:
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(entries)
        (tmp_path / f"{name}_module.py").write_text(MODULE)

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return install


def test_registered_problem_type_is_scored_and_listed():
    @register_problem_type("same length")
    def same_length(prediction, solution, options):
        return 1.0 if len(prediction) == len(solution) else 0.5 if prediction in options else 0.0

    assert problem_types() == (*PROBLEM_TYPES, "same length")
    answers = ("abc", "<answer>xyz</answer>", "a", "b", " ")
    scores = [answer_accuracy("same length", answer, "<answer>123</answer>", options=["a"]) for answer in answers]
    assert scores == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert answer_accuracy("same length", "abc", "123", strict=True) == 1.0


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, math.inf])
def test_scorer_returning_value_out_of_range_raises_error_with_its_type(value):
    register_problem_type("wild")(lambda prediction, solution, options: value)
    with pytest.raises(ValueError, match=r"scorer of problem type 'wild' returned .*: return a number in \[0, 1\]"):
        answer_accuracy("wild", "a", "b")


@pytest.mark.parametrize("name", ["OCR", "twice"])
def test_registering_a_taken_problem_type_is_refused(name):
    register_problem_type("twice")(print)
    register_problem_type("twice")(print)  # the same object again
    with pytest.raises(ValueError, match=f"problem type '{name}' is taken by "):
        register_problem_type(name)(len)


def test_records_rows_and_prompts_accept_registered_problem_type():
    template = "{question} {answer_form}\n" + "".join(f"[{kind}]\nAny.\n" for kind in PROBLEM_TYPES)
    record = {"problem": "Odd?", "problem_type": "parity", "data_type": "video", "path": "a.mp4", "solution": "3"}
    row = {"problem_type": "parity", "reward_model": {"ground_truth": "3"}, "extra_info": {"question": "Odd?"}}
    with pytest.raises(RowError, match="give one of multiple choice, numerical, OCR, free-form, regression"):
        Record.parse(record)
    with pytest.raises(RowError, match="field problem_type is 'parity'"):
        Row.from_columns(row)

    register_problem_type("parity")(lambda prediction, solution, options: float(prediction == solution))
    assert Row.from_columns(row).problem_type == "parity"
    assert rl_columns(Record.parse(record), 0, PromptTemplate.parse(template))["extra_info"]["problem_type"] == "parity"
    parsed = PromptTemplate.parse(f"{template}[parity]\nEven or odd.\n")
    assert parsed.render("Which?", "parity") == "Which? Even or odd."
    assert PromptTemplate.parse(template).render("Which?", "parity").strip() == "Which?"


def test_entry_points_add_problem_type_and_judge_without_import(install):
    install(
        "added",
        "[verl_p2r.problem_types]\nparity = added_module:parity\n[verl_p2r.judges]\nparity = added_module:Parity\n",
    )
    assert "parity" in problem_types()
    assert answer_accuracy("parity", "5", "7") == 1.0
    verdict = asyncio.run(get_judge("parity").judge(JudgeRequest("q", "s", "o")))
    assert verdict.reason == "even"
    with pytest.raises(
        ValueError, match="use one of all, any, facts, openai, parity, self, verl, visual, weighted, or"
    ):
        get_judge("unknown")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:scorer", r"problem type 'odd' cannot be imported from 'no_such_module:scorer': .*No module"),
        ("broken_module:missing", r"cannot be imported from 'broken_module:missing': .*write module:attribute"),
    ],
)
def test_broken_entry_point_is_named_in_error(install, value, message):
    install("broken", f"[verl_p2r.problem_types]\nodd = {value}\n")
    with pytest.raises(ValueError, match=message):
        answer_accuracy("odd", "1", "1")


def test_a_package_cannot_take_a_built_in_name(install):
    install("greedy", "[verl_p2r.problem_types]\nOCR = greedy_module:parity\n")
    with pytest.raises(ValueError, match=r"'OCR', which greedy adds through verl_p2r\.problem_types, is taken by "):
        problem_types()


def test_two_packages_cannot_share_a_name(install):
    for name in ("first", "second"):
        install(name, f"[verl_p2r.problem_types]\nparity = {name}_module:parity\n")
    with pytest.raises(ValueError, match=r"'parity', which .* adds .* is taken by .*: rename it there, or uninstall"):
        problem_types()


@pytest.mark.parametrize("text", ["x = y", "x = (", "{}['a']"])
def test_any_error_in_an_extensions_module_is_named(tmp_path, monkeypatch, text):
    (tmp_path / "broken_thing.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ValueError, match=r"imported from 'broken_thing:Thing': (NameError|SyntaxError|KeyError)"):
        get_judge("broken_thing:Thing")


def test_failing_import_inside_entry_point_module_names_cause(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import a_missing_dependency\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    registry = Registry("thing", "verl_p2r.things", {"mine": "needs_more:Thing"})
    assert registry.names() == ("mine",)
    assert registry.find("other") is None
    with pytest.raises(ValueError, match=r"thing 'mine' cannot be imported .*a_missing_dependency"):
        registry.find("mine")
