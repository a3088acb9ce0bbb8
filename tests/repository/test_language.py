# SPDX-License-Identifier: Apache-2.0
"""Plain English: a dozen phrases that this project used to overuse, with what to write instead."""

import re
from pathlib import Path

import pytest
from paths import ROOT, TABLES

FOLDERS = ("verl_p2r", "data_tools", "tests", "examples", "benchmarks", "docs", "upstream", ".github", "requirements")
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".sh", ".bash", ".toml"}
HERE = Path(__file__)

# Pattern → what to write instead.
RULES = {
    r"(?<!there )(?<!There )\b(?:is|are|was|were) no (?!\w+er\b|more\b|less\b|different\b)[a-z]": "is not a",
    r"\btold of\b": "called with, informed about",
    r"\bhangs? on\b": "depends on",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bbeside [\w`]": "next to, in addition to, with",
    r"\bwhatever (?:it is|they are|it was|they were)\b": "name the cases, or leave it out",
    r"(?<![\"'])\b[Nn]obody(?:'s)?\b(?![\"'])": "no process, no one",
    r", for (?:the |a |an )?(?!(?:which|whom|what|example|instance)\b)\w+ (?:is|are|was|were|has|have)\b": ", because",
    r"\bof (?:its|their|one's) own\b": "its own, a separate",
    r"(?:#|\"\"\") ?[Oo]f (?!course\b|which\b)\w": "a whole phrase: a comment must not begin with a genitive",
    r"^\s+[a-z_, ]+: of \w": "a whole phrase: an argument's description must not begin with a genitive",
    r"(?<!\w)anew\b(?! ?[=,)\]])": "again, from the beginning",
    r"\bmeets? itself\b|\bhalf-made\b": "causes a circular import",
    r"\b(?:what|all that) stands\b|\bstands (?:behind|before|beside)\b": "the text after, before, next to",
    r"\bworth nothing\b|\bno use\b|\bof use\b": "useless, useful",
    r"\b(?:calls?|records?|values?|rows?|are|were|be) in hand\b": "in flight, current",
}


def sources() -> list[Path]:
    """Every text file of the repository except tables of test cases and this file."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    kept = (path for path in files if path.suffix in SUFFIXES and TABLES not in path.parents and path != HERE)
    return sorted(kept)


def lapses(text: str) -> list[tuple[int, str]]:
    """Line number and advice for each place where a rule matches."""
    lines = text.splitlines()
    return [
        (number, f"{match[0].strip()!r}: write {advice!r}")
        for pattern, advice in RULES.items()
        for number, line in enumerate(lines, start=1)
        for match in re.finditer(pattern, line)
    ]


@pytest.mark.parametrize(
    "line",
    [
        "A listing is no evidence.",
        "on_row: told of each row.",
        "All that the key hangs on.",
        "The import mends torch.",
        "The manifest beside the output.",
        "Whatever the file, whatever it is.",
        "Then nobody is there.",
        "It raises, for the folder is missing.",
        "A process of its own.",
        "SLOTS = 8  # of the stand-in",
        "        timeout_s: of one attempt.",
        "verl starts its file anew.",
        "The module meets itself.",
        "What stands before the tag.",
        "To go on is no use.",
        "How many calls are in hand.",
    ],
)
def test_each_language_rule_matches_its_phrase(line):
    assert len(lapses(line)) >= 1


def test_language_rules_accept_plain_english():
    text = """
    There is no file, and there are no rows. The result is no longer used, is no larger and is no different.
    The server depends on the recommended setting; amend the commit, and recommend a fix.
    Wait for the process that is running. Use it for questions, for example. A value for which there is a default.
    One of the rows, of course. A judge of your own. Each process has its own file.
    judge.ask_anew(request), Replies.beside(folder), ["nobody"], again, anew = pair
    # One of two: "the state of the art"
    timeout_s: Time limit of one attempt, in seconds.
    It stands for a record. Use whatever the server sends. Both are in use.
    """
    assert lapses(text) == []


def test_the_tree_is_written_in_plain_english():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {what}"
        for path in sources()
        for number, what in lapses(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)
