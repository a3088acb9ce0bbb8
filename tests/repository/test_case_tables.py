# SPDX-License-Identifier: Apache-2.0
"""The case tables: their README counts the cases and the tests by kind, and no answer occurs twice."""

import json
import re
from collections import Counter

import pytest
from collected import COLLECTED
from paths import ROOT, TABLES

FOLDER = TABLES
KINDS = {  # table: the list in the file, and the field that names a case's kind
    "accuracy.json": (None, "problem_type"),
    "answers_choice.json": (None, "problem_type"),
    "answers_number.json": (None, "problem_type"),
    "answers_text.json": (None, "problem_type"),
    "gaming.json": ("attacks", "process"),
    "honest_observations.json": ("observations", None),
    "judge_addresses.json": ("addresses", None),
    "judge_attacks.json": ("attacks", "kind"),
    "judge_replies.json": ("replies", None),
    "template.json": (None, None),
}


def cases_of(name: str) -> list[dict]:
    table = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    key, _ = KINDS[name]
    return table if key is None else table[key]


def lines() -> list[str]:
    """The rows that the README must have."""
    rows = []
    for name, (_, field) in KINDS.items():
        kinds = Counter(case[field] if field else "all" for case in cases_of(name))
        rows += [f"| `{name}` | {kind} | {count} |" for kind, count in sorted(kinds.items())]
    return rows


def test_every_case_table_is_counted():
    assert {path.name for path in FOLDER.glob("*.json")} == KINDS.keys()


def test_case_readme_counts_match_tables():
    found = [line for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert found == lines()


TESTED = re.findall(
    r"^\| (\d) \| ([^|]+) \| ([^|]+) \| (\d+) \|$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE
)


def test_each_part_names_tests_that_exist():
    assert {part for part, *_ in TESTED} == set("123456")
    files = [test.split("::")[0] for *_, tests, _ in TESTED for test in re.findall("`(.+?)`", tests)]
    assert [file for file in files if not (ROOT / "tests" / file).is_file()] == []


@pytest.mark.parametrize(("tests", "least"), [row[2:] for row in TESTED], ids=[row[1] for row in TESTED])
def test_a_kind_keeps_its_tests(request, tests, least):
    collected, names = request.config.stash[COLLECTED], re.findall("`(.+?)`", tests)
    if any("::" in argument for argument in request.config.args) or not all(
        collected[name.split("::")[0]] for name in names
    ):
        pytest.skip("not all of its files were collected")
    assert sum(collected[name] for name in names) >= int(least)


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("answers")])
def test_case_tables_have_no_duplicates(name):
    keys = Counter(
        json.dumps([case[k] for k in ("problem_type", "prediction", "solution", "options")]) for case in cases_of(name)
    )
    assert [key for key, count in keys.items() if count > 1] == []
