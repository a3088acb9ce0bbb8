# SPDX-License-Identifier: Apache-2.0
"""Figures of benchmarks, worked by hand."""

import math

import pytest

from verl_p2r.evaluation import Protocol, score
from verl_p2r.evaluation.intervals import effective_size, wilson
from verl_p2r.evaluation.items import ItemScore
from verl_p2r.evaluation.summary import knowledge_gain, summary

# Qwen2.5-VL-7B at 64 frames, by type: items and percent (VLMEvalKit, pull request 1342).
VSI = {
    "object_size_estimation": (953, 42.40),
    "object_abs_distance": (834, 21.98),
    "object_counting": (565, 24.44),
    "room_size_estimation": (288, 26.81),
    "object_rel_distance": (710, 36.62),
    "obj_appearance_order": (618, 27.02),
    "object_rel_direction_easy": (217, 48.39),
    "object_rel_direction_medium": (378, 46.03),
    "object_rel_direction_hard": (373, 27.61),
    "route_planning": (194, 27.84),
}
NUMERIC = ("object_size_estimation", "object_abs_distance", "object_counting", "room_size_estimation")


def item(group="", strict=1.0, video="v", metric="accuracy", benchmark="vsi_bench"):
    return ItemScore(benchmark, None, group, metric, strict, strict, video, True, False, None, 1)


def record(answer="A", solution="A", benchmark="mmvu", number=0, **more):
    response = f"<observation>o</observation><think>t</think><answer>{answer}</answer>"
    return {
        "benchmark": benchmark,
        "problem_id": number,
        "problem_type": "multiple choice",
        "question_type": "kind",
        "video_id": f"v{number}",
        "options": ["A. red", "B. blue"],
        "solution": solution,
        "response": response,
        "finish_reason": "stop",
        **more,
    }


@pytest.mark.parametrize(("protocol", "percent"), [("official", 30.97), ("video_r1", 32.53)])
def test_vsi_bench_overall_scores_match_published_figures(protocol, percent):
    items = [
        item(name, share / 100, f"v{i}", "mra" if name in NUMERIC else "accuracy")
        for name, (count, share) in VSI.items()
        for i in range(count)
    ]
    assert len(items) == 5130
    figures = summary(items, Protocol.load(protocol))
    assert figures["score"] * 100 == pytest.approx(percent, abs=0.005)
    assert {name: round(value * 100, 2) for name, value in figures["overall"].items()} == {
        "official": 30.97,
        "video_r1": 32.53,
        "items": 32.47,
    }
    assert figures["categories"]["route_planning"]["n"] == 194


def test_vsi_bench_scores_from_replies_match_published_figures():
    """Each type gets as many right answers as its percent says, to the nearest item."""
    records = []
    for name, (count, share) in VSI.items():
        kind = "regression" if name in NUMERIC else "multiple choice"
        right = round(count * share / 100)
        for i in range(count):
            answer = ("4" if i < right else "40") if kind == "regression" else ("A" if i < right else "B")
            more = {"problem_type": kind, "question_type": name, "video_id": f"v{i % 288}"}
            solution = "4" if kind == "regression" else "A"
            records.append(record(answer, solution, "VSI-Bench", f"{name} {i}", **more))
    for protocol, percent in (("official", 30.97), ("video_r1", 32.53)):
        figures = score(records, protocol)["VSI-Bench"]
        assert figures["score"] * 100 == pytest.approx(percent, abs=0.05)
        assert figures["overall"]["items"] * 100 == pytest.approx(32.47, abs=0.05)


def test_mean_of_types_and_mean_of_two_means():
    items = [item("a", 1), item("a", 0), item("b", 1), item("object_rel_direction_easy", 0), item("c", 0.5, "w", "mra")]
    assert summary(items, Protocol.load("video_r1"))["score"] == pytest.approx((0.5 + 2 / 4) / 2)
    assert summary(items, Protocol.load("official"))["score"] == pytest.approx((0.5 + 1 + 0 + 0.5) / 4)
    tracks = [item("Perception", 1, benchmark="VideoMMMU")] * 3 + [item("Adaptation", 0, benchmark="VideoMMMU")]
    assert summary(tracks, Protocol.load("official"))["score"] == 0.5
    assert summary(tracks, Protocol.load("video_r1"))["score"] == 0.75


def test_knowledge_gain_by_hand():
    """Adaptation: 1 of 4 without the lecture, 2 of 4 with it. Of the 3/4 that were missing, 1/3 was gained."""

    def items(benchmark, track, right, count=4):
        return [
            record("A" if i < right else "B", "A", benchmark, f"{track} {i}", question_type=track) for i in range(count)
        ]

    before = items("video_mmmu_question_only", "Adaptation", 1)
    after = items("video_mmmu", "Adaptation", 2) + items("video_mmmu", "Perception", 4)
    for protocol in ("official", "video_r1"):
        row = score([*after, *before], protocol)["video_mmmu"]
        assert row["knowledge_gain"] == pytest.approx({"score": 1 / 3, "before": 0.25, "after": 0.5})
        assert row["score"] == 0.75  # the tracks' mean; the items without lectures are not in it
    assert "knowledge_gain" not in score(after, "official")["video_mmmu"]
    assert knowledge_gain(0.5, 0.25) == -0.5
    assert knowledge_gain(1.0, 1.0) == 0


def test_a_reading_that_is_not_the_benchmarks_own_is_noted():
    records = [record(benchmark=name) for name in ("mmvu", "MVBench", "video_mme")]
    notes = {name: row["note"] for name, row in score(records, "official").items()}
    assert notes["mmvu"] == "read by our lenient reader; its own code asks GPT-4o"
    assert notes["MVBench"].startswith("read by our lenient reader")
    assert notes["video_mme"] == ""
    assert {row["note"] for row in score(records, "video_r1").values()} == {""}


def test_wilson_interval_matches_hand_computed_bounds():
    """7 of 10: centre (0.7 + 3.8415/20) / 1.38415, half-width 1.96 √(0.021 + 3.8415/400) / 1.38415."""
    low, high = wilson(0.7, 10)
    assert (low, high) == pytest.approx((0.396778, 0.892209), abs=1e-6)
    assert wilson(0.0, 0) == (0.0, 1.0)
    assert wilson(1.0, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)
    figures = score([record("A" if i < 7 else "B", number=i) for i in range(10)], "video_r1")["mmvu"]
    assert (figures["score"], figures["n"]) == (0.7, 10)
    assert (figures["low"], figures["high"]) == pytest.approx((0.396778, 0.892209), abs=1e-6)


def test_clustered_effective_size_matches_hand_computed_values():
    """Two videos of two items, each all right or all wrong, are two observations and not four.

    Residuals ±0.5 with weights 1/4 sum to ±1/4 a video: Var = 2/1 · 2 · (1/4)² = 1/4, n_eff = 1/4 / (1/4) = 1.
    """
    assert effective_size([1, 1, 0, 0], [0.25] * 4, [0.5] * 4, ["a", "a", "b", "b"]) == pytest.approx(1.0)
    # Four videos of one item: Var = 4/3 · 4 · (1/8)² = 1/12, n_eff = 3, which is n − 1.
    assert effective_size([1, 1, 0, 0], [0.25] * 4, [0.5] * 4, list("abcd")) == pytest.approx(3.0)
    records = [record("A" if i < 40 else "B", number=i, video_id=f"v{i // 10}") for i in range(80)]
    figures = score(records, "video_r1")["mmvu"]
    assert figures["clustered"]["videos"] == 8
    assert figures["clustered"]["high"] - figures["clustered"]["low"] > 2 * (figures["high"] - figures["low"])


def test_duplicates_count_once_and_conflicting_replies_are_rejected():
    records = [record("AB"[i % 2], number=i) for i in range(6)]
    assert score(records * 2, "video_r1") == score(records, "video_r1")
    with pytest.raises(ValueError, match=r"record 6: mmvu 0 occurs twice, with different replies"):
        score([*records, record("B", number=0)], "video_r1")


def test_records_without_an_id_all_count():
    rows = [{name: value for name, value in record().items() if name != "problem_id"}] * 3
    assert score(rows, "video_r1")["mmvu"]["n"] == 3


def test_lost_items_score_zero_and_are_counted_by_reason():
    records = [
        record(number=0),
        record(number=1, response=None, lost="unreadable medium"),
        record(number=2, response=None),
        record(number=3, finish_reason="length", response="<observation>o</observation><think>cut"),
        record(number=4, response=""),
    ]
    figures = score(records, "video_r1")["mmvu"]
    assert (figures["n"], figures["score"]) == (5, 0.2)
    assert figures["lost"] == {"unreadable medium": 1, "no reply": 1}
    assert (figures["truncated"], figures["format_rate"]) == (0.2, 0.2)
    assert figures["length"]["median"] == len(records[3]["response"])  # three replies have 66, 41 and 0 characters


def test_categories():
    records = [record("AB"[i % 2], number=i, categories={"duration": ["short", "long"][i % 2]}) for i in range(4)]
    figures = score(records, "video_r1")["mmvu"]
    assert figures["categories"]["kind"]["score"] == 0.5
    assert {name: row["score"] for name, row in figures["by"]["duration"].items()} == {"short": 1.0, "long": 0.0}
    assert figures["protocol"] == "video_r1"


def test_official_protocol_excludes_captioning():
    rows = [record(number=0, question_type="captioning"), record(number=1, question_type="yes_no")]
    assert score(rows, "official")["mmvu"]["n"] == 1
    assert score(rows, "video_r1")["mmvu"]["n"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": None}, "record 0: field benchmark is None"),
        ({"solution": ""}, "record 0: field solution is ''"),
        ({"problem_type": "choice"}, "record 0 of mmvu: unknown problem type 'choice'"),
        ({"response": 3}, "record 0: field response is a int"),
    ],
)
def test_errors_name_the_bad_record(change, message):
    with pytest.raises(ValueError, match=message):
        score([record(**change)], "video_r1")


def test_intervals_contain_the_score_and_stay_within_0_and_1():
    for right in range(0, 21):
        figures = score([record("A" if i < right else "B", number=i) for i in range(20)], "official")["mmvu"]
        for bounds in (figures, figures["clustered"] | {"score": figures["score"]}, figures["lenient"]):
            assert 0 <= bounds["low"] <= bounds["score"] <= bounds["high"] <= 1
            assert not math.isnan(bounds["low"])
