# SPDX-License-Identifier: Apache-2.0
"""How replies are read, strictly by a protocol and leniently."""

import random

import pytest

from verl_p2r.accuracy import answer_accuracy
from verl_p2r.evaluation import Protocol, protocol_names, score_response

OPTIONS = ["A. a red ball", "B. a blue box", "C. both", "D. a blue box"]
WHOLE = "<observation>Based on the question, A man.</observation><think>Based on it, (A)?</think><answer>{}</answer>"


def scores(response, solution="B", kind="multiple choice", protocol="video_r1", benchmark="mvbench", options=OPTIONS):
    return score_response(response, solution, kind, protocol=protocol, benchmark=benchmark, options=options)


@pytest.mark.parametrize(
    ("response", "strict", "lenient"),
    [
        (WHOLE.format("B"), 1, 1),
        (WHOLE.format(" B\n"), 1, 1),
        (WHOLE.format("(b)"), 0, 1),
        (WHOLE.format("B. a blue box"), 0, 1),
        (WHOLE.format("a blue box"), 0, 0),  # two options have this text
        (WHOLE.format("A or B"), 0, 0),
        (WHOLE.format("A"), 0, 0),
        ("B", 1, 1),  # a baseline's bare reply
        ("The answer is B.", 0, 1),
        ("<observation>a box</observation><think>So it must be B", 0, 0),  # cut off in its thinking
        ("<think>It is B</think> B", 0, 0),
        ("<answer>A</answer> no, <answer>B</answer>", 0, 0),  # the first block counts
        ("", 0, 0),
    ],
)
def test_video_r1_protocol_reads_choices(response, strict, lenient):
    assert scores(response) == (strict, lenient)


@pytest.mark.parametrize(
    ("response", "solution", "protocol", "expected"),
    [
        ("<answer>3</answer>", "4", "video_r1", (0.5, 0.5)),
        ("<answer>3</answer>", "4", "official", (0.6, 0.6)),
        ("<answer>about 3 metres</answer>", "4", "official", (0.0, 0.6)),  # only the lenient one reads units
        ("<answer>3. I think</answer>", "4", "official", (0.6, 0.0)),  # VSI-Bench reads the first word
        ("<answer>1,000</answer>", "1000", "video_r1", (1.0, 1.0)),
        ("<answer>many</answer>", "4", "video_r1", (0.0, 0.0)),
        ("<answer>inf</answer>", "4", "video_r1", (0.0, 0.0)),
    ],
)
def test_vsi_bench_numbers_are_scored_by_each_protocol(response, solution, protocol, expected):
    got = scores(response, solution, "regression", protocol, "vsi_bench", [])
    assert got == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("benchmark", "response", "strict"),
    [
        ("vsi_bench", "<answer>b. a blue box</answer>", 1),
        ("vsi_bench", "<answer>(B)</answer>", 0),
        ("video_mme", "<answer>The best answer is: B</answer>", 1),
        ("video_mme", "<answer>A man with B</answer>", 0),  # its reader takes the article for option A
        ("video_mmmu", "<answer>(A) no, (B)</answer>", 1),
        ("tempcompass", "<answer>B) a blue box</answer>", 1),
        ("tempcompass", "<answer>Because of B</answer>", 0),
        ("mmvu", "<answer>Option B</answer>", 1),
    ],
)
def test_official_protocol_reads_choices_by_benchmark(benchmark, response, strict):
    assert scores(response, protocol="official", benchmark=benchmark)[0] == strict


@pytest.mark.parametrize(("said", "strict"), [("Yes, it does", 1), ("no", 0), ("A", 1), ("A.", 1), ("B", 0)])
def test_official_protocol_reads_tempcompass_yes_and_no(said, strict):
    options = ["A. yes", "B. no"]
    assert scores(said, "A", protocol="official", benchmark="TempCompass", options=options)[0] == strict


def test_official_protocol_reads_video_mmmu_open_answers():
    reply = "<answer>The total is 12.346 J</answer>"
    assert scores(reply, "12.35", "numerical", "official", "VideoMMMU", []) == (1.0, 1.0)
    assert scores(reply, "12.35", "numerical", "video_r1", "VideoMMMU", [])[0] == 0.0


def test_option_letters_beyond_j_are_read():
    options = [f"{letter}. option number {i}" for i, letter in enumerate("ABCDEFGHIJKLMN")]
    for protocol in ("video_r1", "official"):
        assert scores("<answer>N</answer>", "N", protocol=protocol, benchmark="video_mmmu", options=options) == (1, 1)


def test_the_shortcut_for_letters_agrees_with_the_lenient_accuracy():
    for options in (OPTIONS, ["A. red"], ["red", "blue"], ["B. red", "A. blue"], ["1. red", "2. blue"], []):
        for solution in "ABEZ":
            for answer in "ABCEZ1a":
                expected = answer_accuracy("multiple choice", answer, solution, options=options)
                got = scores(f"<answer>{answer}</answer>", solution, options=options)[1]
                assert got == expected, (options, solution, answer)


def test_strict_reading_agrees_with_training_on_generated_replies():
    draw = random.Random(0)
    says = ["A", "B", " B ", "(B)", "B.", "", "3", "3.0", "1,000", "x"]
    for _ in range(1000):
        kind, solution = draw.choice([("multiple choice", "B"), ("numerical", "3"), ("numerical", "1000.00")])
        said = draw.choice(says)
        expected = answer_accuracy(kind, said, solution, strict=True)
        assert scores(WHOLE.format(said), solution, kind)[0] == expected, (kind, solution, said)


def test_unknown_names_are_rejected_with_a_list_of_known_ones():
    with pytest.raises(ValueError, match="name one of official, video_r1"):
        Protocol.load("videor1")
    with pytest.raises(ValueError, match="unknown problem type 'choice'"):
        scores("B", kind="choice")
    assert protocol_names() == ["official", "video_r1"]


def test_a_custom_protocol(tmp_path):
    text = "description: mine\ninclusive: true\nclips: false\nlast_frame_note: false\n"
    text += "readers: {default: lenient}\noverall: {default: items}\n"
    file = tmp_path / "mine.yaml"
    file.write_text(text + "left_out: []\n")
    assert scores("<answer>(b)</answer>", protocol=str(file)) == (1, 1)
    file.write_text(text)
    with pytest.raises(ValueError, match=r"it must have clips, description, .*left_out"):
        Protocol.load(f"{tmp_path}/./mine.yaml")
    file.write_text(text.replace("lenient", "kind") + "left_out: []\n")
    with pytest.raises(ValueError, match="field readers: map benchmarks"):
        Protocol.load(f"{tmp_path}/../{tmp_path.name}/mine.yaml")
