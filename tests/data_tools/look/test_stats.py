# SPDX-License-Identifier: Apache-2.0
"""Statistics of records, against counts by hand and against the rewards' own measure of a segment."""

import pytest
from release_files import OBSERVATION, THINKING, release_record, write_lines
from rich.console import Console
from typer.testing import CliRunner
from view_records import UNCLEAR, dropped, write_step

from data_tools.cli import app
from data_tools.look.stats import Stats, segment_lengths
from data_tools.steps.decontaminate import Benchmark, decontaminate
from verl_p2r.data.record import Record
from verl_p2r.segments import visible_lengths

RAWS = [
    release_record(0, path="STAR/a.mp4"),
    release_record(1, path="STAR/a.mp4", problem="which ball moves FIRST"),
    release_record(2, path="STAR/b.mp4"),
    release_record(
        3, path="Chart/c.png", data_type="image", problem_type="numerical", problem="2?", solution="2", answer=None
    ),
    release_record(4, path="STAR/d.mp4", problem="Why?", output=None, process=None),
]


def shown(stats: Stats) -> str:
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in stats.tables():
        console.print(table)
    return console.export_text()


def test_statistics_match_hand_counts():
    stats = Stats.collect(map(Record.parse, RAWS))
    assert (stats.records, stats.responses) == (5, 4)
    assert stats.types == {("video", "multiple choice"): 4, ("image", "numerical"): 1}
    assert stats.sources == {"STAR": 4, "Chart": 1}
    # Three records ask the same question, two of them of the same video.
    assert (stats.questions, stats.same_medium) == (3, 1)
    lines = [line.split() for line in shown(stats).splitlines()]
    assert ["image", "0", "1", "0", "0", "0", "1"] in lines
    assert ["video", "4", "0", "0", "0", "0", "4"] in lines
    assert ["sum", "4", "1", "0", "0", "0", "5"] in lines
    assert ["STAR", "4", "80.0%"] in lines
    assert ["with", "words", "that", "another", "record", "has", "too", "2", "40.0%"] in lines


def test_segment_lengths_equal_lengths_used_by_rewards(processor):
    tokenizer = processor.tokenizer
    texts = [
        f"<observation>{OBSERVATION}</observation>\n<think>{THINKING}</think>\n<answer>A</answer>",
        "<observation>été 😀</observation>  <think>a</think><answer>b</answer>",
        "<observation> \u200b a \n ball</observation><think>\u3164so </think>\n<answer>b </answer> well",
        "no block at all",
        "<think>only</think>",
        "<observation>never closed",
    ]
    expected = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        expected.append(visible_lengths(ids, tokenizer))
    assert segment_lengths(texts, tokenizer) == expected
    assert expected[0][0] > 20
    assert expected[0][1] > 20


class Letters:
    """A tokenizer whose tokens are characters."""

    def __call__(self, texts, **_):
        return {"offset_mapping": [[(i, i + 1) for i in range(len(text))] for text in texts]}


def test_statistics_show_lengths_against_reward_bands():
    # Neither tags nor line ends count: R is its thinking and the "A".
    raws = []
    for i, (p, r) in enumerate([(127, 319), (128, 319), (320, 511), (321, 512), (321, 512)]):
        text = f"<observation>{'o' * p}</observation>\n<think>{'t' * r}</think>\n<answer>A</answer>"
        raws.append(release_record(i, output=text))
    stats = Stats.collect(map(Record.parse, raws), Letters())
    assert sorted(stats.lengths["perception"].elements()) == [127, 128, 320, 321, 321]
    assert sorted(stats.lengths["reasoning"].elements()) == [320, 320, 512, 513, 513]
    lines = [line.split() for line in shown(stats).splitlines()]
    # P's band is 128 to 320 tokens: 127 | 128, 320 | 321, 321. R's is 320 to 512: 320, 320, 512 | 513, 513.
    assert ["perception", "127", "320", "321", "128-320", "20.0%", "40.0%", "40.0%"] in lines
    assert lines[-1][-3:] == ["0.0%", "60.0%", "40.0%"]


def test_statistics_of_no_records_are_empty_tables():
    assert "sum" in shown(Stats.collect([]))


def test_stats_command_shows_counts_of_earlier_steps(tmp_path, tiny_model):
    training = write_lines(tmp_path / "a.jsonl", [*RAWS, {"problem": "x"}])
    bench = Benchmark([write_lines(tmp_path / "b.jsonl", [{"video": "b.mp4"}])])
    decontaminate([training], bench, tmp_path / "clean")
    done = CliRunner().invoke(
        app, ["stats", str(tmp_path / "clean"), "--tokenizer", str(tiny_model), "--published"], env={"COLUMNS": "150"}
    )
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    assert ["decontaminate", "6", "4", "66.7%", "2"] in lines
    assert any(line[:1] == ["perception"] for line in lines)
    assert "sum: 4 records, published 162,062 (-162,058)" in done.output
    assert "0 records rejected" in done.output


def test_stats_command_shows_keep_rate_and_reasons_per_step(tmp_path):
    verify = {"step": "verify", "read": 10, "written": 7, "rejected": {"[odd] reason": 1}, "dropped": {"format": 2}}
    older = {"step": "generate", "read": 12, "written": 10, "rejected": {"no reply": 2}}
    folder = write_step(
        tmp_path / "judge", RAWS[:4], [dropped(9, UNCLEAR), dropped(10, UNCLEAR)], history=(older, verify)
    )
    done = CliRunner().invoke(app, ["stats", str(folder)], env={"COLUMNS": "150"})
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    at = lines.index("step read kept keep rate left out of those read")
    assert lines[at + 1 : at + 8] == [
        "generate 12 10 83.3% 2",
        "rejected, no reply 2 16.7%",
        "verify 10 7 70.0% 3",
        "dropped, format 2 20.0%",
        "rejected, [odd] reason 1 10.0%",
        "judge 6 4 66.7% 2",
        "dropped, insufficient observation 2 33.3%",
    ]


def test_stats_command_reports_missing_input(tmp_path):
    done = CliRunner().invoke(app, ["stats", str(tmp_path / "no.json")])
    assert done.exit_code == 2
    assert "does not exist" in done.output


@pytest.mark.parametrize("source", ["[red]", "a[/b]"])
def test_statistics_show_names_with_brackets_verbatim(source):
    assert source in shown(Stats.collect([Record.parse(release_record(data_source=source))]))
