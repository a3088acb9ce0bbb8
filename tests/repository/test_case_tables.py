# SPDX-License-Identifier: Apache-2.0
"""The case tables: their README counts the cases by kind, and no answer occurs twice."""

import json
from collections import Counter

import pytest
from paths import TABLES

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


def test_every_table_is_counted():
    assert {path.name for path in FOLDER.glob("*.json")} == KINDS.keys()


def test_the_readme_counts_the_cases_of_each_kind():
    found = [line for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert found == lines()


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("answers")])
def test_no_case_occurs_twice(name):
    keys = Counter(
        json.dumps([case[k] for k in ("problem_type", "prediction", "solution", "options")]) for case in cases_of(name)
    )
    assert [key for key, count in keys.items() if count > 1] == []
