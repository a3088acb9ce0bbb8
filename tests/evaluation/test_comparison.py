# SPDX-License-Identifier: Apache-2.0
"""Two runs against each other."""

import pytest

from verl_p2r.evaluation import compare


def run(answers, video=lambda i: i):
    return [
        {
            "benchmark": "mvbench",
            "problem_id": i,
            "problem_type": "multiple choice",
            "task": "t",
            "video_id": f"v{video(i)}",
            "options": ["A. red", "B. blue"],
            "solution": "A",
            "response": f"<answer>{answer}</answer>",
        }
        for i, answer in enumerate(answers)
    ]


def test_run_difference_matches_hand_computed_interval():
    result = compare(run("ABBAB" * 20), run("AABAB" * 20), "video_r1")["mvbench"]
    assert (result["first"], result["second"]) == (0.4, 0.6)
    assert result["difference"] == pytest.approx(0.2)
    assert (result["n"], result["wins"], result["losses"]) == (100, 20, 0)
    # The mean of 100 differences of variance 0.16 has a standard error of 0.04.
    assert result["low"] == pytest.approx(0.2 - 1.96 * 0.04, abs=0.015)
    assert result["high"] == pytest.approx(0.2 + 1.96 * 0.04, abs=0.015)
    assert result["p"] < 0.001


def test_identical_runs_do_not_differ():
    result = compare(run("AB" * 10), run("AB" * 10), "official")["mvbench"]
    assert (result["difference"], result["low"], result["high"], result["p"]) == (0, 0, 0, 1)


def test_items_of_one_video_are_resampled_together():
    answers = "B" * 40, "A" * 10 + "B" * 30
    alone, together = (compare(run(answers[0], v), run(answers[1], v), "video_r1")["mvbench"] for v in (int, _ten))
    assert together["videos"] == 4
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])
    assert together["p"] > 0.2  # one of four videos


def _ten(number: int) -> int:
    return number // 10


def test_only_items_in_both_runs_are_compared():
    result = compare(run("AAAA"), run("AAB"), "video_r1")["mvbench"]
    assert (result["n"], result["only_first"], result["only_second"]) == (3, 1, 0)
    with pytest.raises(ValueError, match="no item in common"):
        compare(run("A"), [], "video_r1")
    with pytest.raises(ValueError, match="has no problem_id"):
        compare([{**run("A")[0], "problem_id": None}], run("A"), "video_r1")


def test_comparison_with_same_seed_gives_same_interval():
    runs = run("ABBAB" * 5), run("AABAB" * 5)
    assert compare(*runs, "video_r1", seed=3) == compare(*runs, "video_r1", seed=3)
