# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/concepts/video-and-time.md, computed by the code that trains."""

import re

import pytest
from paths import ROOT

from verl_p2r.media.families import QWEN2_5_VL
from verl_p2r.media.plan import VideoInfo, VisionSpec, plan_video
from verl_p2r.media.rules import EVALUATION, TRAINING

PAGE = ROOT / "docs" / "concepts" / "video-and-time.md"
SPEC = VisionSpec(QWEN2_5_VL, 14, 2, 2, None, None)
ROWS = [[float(n) for n in re.findall(r"[\d.]+", row)] for row in re.findall(r"^\| \d+ s .*$", PAGE.read_text(), re.M)]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_documented_last_grid_times_match_computed_plan(row):
    length, frames, per_grid, placed, shown, difference = row
    settings = TRAINING if frames == 16 else EVALUATION
    plan = plan_video(settings.fill({"video": "a.mp4"}), VideoInfo(int(length * 25), 25.0, 360, 640), SPEC)
    assert len(plan.indices) == frames
    last = plan.grid[0] - 1
    assert 2 / plan.sampled_fps == pytest.approx(per_grid, abs=0.005)
    assert last * 2 / plan.sampled_fps == pytest.approx(placed, abs=0.005)
    assert plan.indices[2 * last] / 25 == pytest.approx(shown, abs=0.005)
    assert shown - placed == pytest.approx(difference, abs=0.005)


def test_video_and_time_page_has_seven_table_rows():
    assert len(ROWS) == 7
