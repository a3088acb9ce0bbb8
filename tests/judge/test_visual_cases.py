# SPDX-License-Identifier: Apache-2.0
"""The sixty cases of the judge `visual`: balanced, and labelled as an independent look at the decoded clips says."""

import json
import re
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from clip_files import all_frames
from typer.testing import CliRunner
from vision_answer import SHADES

from verl_p2r.judge.evaluation import load_cases
from verl_p2r.judge.guards import rule_verdict
from verl_p2r.judge.visual_cases import NUMBERS, RATE, ROUTES, SIDE, clips, write_cases
from verl_p2r.plugin.cli import app
from verl_p2r.settings import JudgeGuards


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("visual"))


@pytest.fixture(scope="module")
def cases(path):
    return load_cases(path)


def test_sixty_balanced_cases(cases):
    assert len(cases) == len({case.request.row for case in cases}) == 60
    assert Counter(case.label for case in cases) == {True: 30, False: 30}
    kinds = Counter(case.kind for case in cases)
    assert kinds == {"true": 30, "wrong evidence": 10, "wrong detail": 10, "invented object": 10}
    types = Counter(case.request.problem_type for case in cases)
    assert types == {"multiple choice": 36, "numerical": 12, "regression": 12}
    assert len({case.request.media[0]["video"] for case in cases}) == 30
    letters = Counter(clip.solution for clip in clips() if clip.problem_type == "multiple choice")
    assert max(letters.values()) <= 6  # no letter is the answer of most


def test_the_two_observations_of_a_clip_differ_in_one_statement():
    for clip in clips():
        if clip.kind == "invented object":
            assert clip.untrue.startswith(f"{clip.true} A ")
            continue
        true, untrue = clip.true.split(), clip.untrue.split()
        changed = [pair for pair in zip(true, untrue, strict=False) if pair[0] != pair[1]]
        assert 1 <= len(changed) <= 3, changed


def test_no_guard_turns_a_case_away(cases):
    guards = JudgeGuards(answer_only=True, copied_question=True)
    assert [case.request.row for case in cases if rule_verdict(case.request, guards)] == []


@lru_cache
def masks(path: str) -> dict[str, np.ndarray]:
    """The pixels of each colour that a clip shows, every other row and column. Shape of each: (T, H / 2, W / 2)."""
    frames = all_frames(path)[:, ::2, ::2].astype(np.int16)
    found = {name: (np.abs(frames - np.int16(shade)).max(-1) < 30) for name, shade in SHADES.items()}
    return {name: mask for name, mask in found.items() if mask.sum() >= 100}


def route_of(mask: np.ndarray) -> str | None:
    """The route of a shape, from where its pixels lie in the first and in the last frame; None if it stays."""
    ends = []
    for frame in (mask[0], mask[-1]):
        y, x = np.nonzero(frame)
        ends.append((x.mean(), y.mean()) if len(x) else (SIDE / 4, SIDE / 4))
    (x0, y0), (x1, y1) = ends
    if max(abs(x1 - x0), abs(y1 - y0)) < SIDE / 8:
        return None
    way = ("right" if x1 > x0 else "left") if abs(x1 - x0) > abs(y1 - y0) else ("down" if y1 > y0 else "up")
    return ROUTES[way]


def is_true(observation: str, path: str) -> bool:
    """Compare what an observation says of colours, routes, numbers, order and times with the frames."""
    seen = masks(path)
    appears = {name: int(mask.any((1, 2)).argmax()) for name, mask in seen.items()}
    named = list(dict.fromkeys(re.findall("|".join(SHADES), observation)))
    if set(named) != set(seen) or named != sorted(named, key=appears.__getitem__):
        return False
    (mask, *_) = seen.values()
    said = re.search(r"from the [a-z ]+ to the (?:\w+ side|top|bottom)", observation)
    if (said[0] if said else None) != route_of(mask):
        return False
    if number := re.search(rf"({'|'.join(NUMBERS)}) \w+ squares", observation):
        return NUMBERS.index(number[1]) == round(mask[0].sum() / 24.5**2)
    if second := re.search(r"bout (\d(?:\.\d)?) seconds?", observation):
        return float(second[1]) == max(appears.values()) / RATE
    return True


def test_an_independent_look_at_the_clips_gives_the_labels(cases):
    wrong = [
        case.request.row
        for case in cases
        if is_true(case.request.observation, case.request.media[0]["video"]) is not case.label
    ]
    assert wrong == []


def named_colours_are_seen(case) -> bool:
    """The rule of the test server, from the text and the clip's pixels."""
    seen = masks(case.request.media[0]["video"])
    return set(re.findall("|".join(SHADES), case.request.observation)) <= set(seen)


@pytest.mark.slow
def test_the_command_measures_a_judge_that_looks(judge_server, cases, tmp_path):
    out = tmp_path / "results.jsonl"
    arguments = ["visual", "--model", "judge", "--base-url", judge_server.base_url, "--out", str(out)]
    result = CliRunner().invoke(app, ["judge-eval", *arguments, "--reply", "both"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["reply"] for row in rows] == ["explained"] * 60 + ["single_token"] * 60
    expected = ["Yes" if named_colours_are_seen(case) else "No" for case in cases]
    assert [row["verdict"] for row in rows] == expected * 2
    right = sum((word == "Yes") is case.label for word, case in zip(expected, cases, strict=True))
    assert 40 <= right < 60  # it sees colours, but neither motion nor time
    assert "invented object" in result.output


def test_cases_of_ones_own_name_their_media(path, tmp_path):
    row = json.loads(path.read_text("utf-8").splitlines()[0])
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"own.jsonl, line 1: field video is 'videos/00.mp4': give the path of a file"):
        load_cases(own)
    own.write_text(json.dumps({**row, "video": str(path.parent / "videos" / "00.mp4")}))
    assert load_cases(own)[0].request.media[0]["video"].endswith("00.mp4")
