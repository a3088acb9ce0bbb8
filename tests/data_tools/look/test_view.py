# SPDX-License-Identifier: Apache-2.0
"""The sample behind the page, and what the page says of a record; `test_view_browser.py` opens it in a browser."""

import json
import tracemalloc
from collections import Counter

import pytest
from release_files import OBSERVATION, THINKING, lines_of, release_record, write_lines
from typer.testing import CliRunner
from view_records import FORMAT, NO, UNCLEAR, WRONG, YES, dropped, image, kept, response, write_step

from data_tools.cli import app
from data_tools.look.cards import TEXT, Card
from data_tools.look.selection import Selection, sources_of
from data_tools.look.view import write_page
from data_tools.records.left_out import RejectLog
from verl_p2r.data.record import Record


def draw(tmp_path, inputs, count=50, seed=0) -> Selection:
    with RejectLog(tmp_path / "rejects.jsonl") as rejects:
        return Selection.draw(sources_of(inputs), count, seed, rejects)


def card(**changes) -> Card:
    return Card.of(Record.parse(release_record(1, **changes), file="a.jsonl", line=3))


@pytest.fixture
def unequal(tmp_path):
    """100 kept and 3 dropped records about videos, 10 kept ones about images."""
    keep = [*(kept(i) for i in range(100)), *(kept(100 + i, **image(i)) for i in range(10))]
    return write_step(tmp_path / "judge", keep, [dropped(200 + i, UNCLEAR) for i in range(3)])


def test_view_sample_is_balanced_over_problem_types_and_states(tmp_path, unequal):
    sample = draw(tmp_path, [unequal], count=21)
    kinds = Counter((card.problem_type, card.state) for card in sample.cards)
    # 7 for each of three kinds; of the dropped there are but 3, so that the others get 9 each.
    assert kinds == {("multiple choice", "kept"): 9, ("multiple choice", "dropped"): 3, ("numerical", "kept"): 9}
    assert sample.totals == {
        ("multiple choice", "kept"): 100,
        ("multiple choice", "dropped"): 3,
        ("numerical", "kept"): 10,
    }
    assert len(draw(tmp_path, [unequal], count=1000).cards) == 113
    assert len({card.record for card in draw(tmp_path, [unequal], count=1000).cards}) == 113


def test_view_sample_depends_on_seed_but_not_on_record_order(tmp_path):
    records = [release_record(i) for i in range(60)]
    there = write_lines(tmp_path / "a.jsonl", records)
    back = write_lines(tmp_path / "b.jsonl", records[::-1])
    drawn = [
        [card.record for card in draw(tmp_path, [file], 9, seed).cards] for file in (there, back) for seed in (0, 7)
    ]
    assert drawn[0] == drawn[2]
    assert drawn[1] == drawn[3]
    assert set(drawn[0]) != set(drawn[1])


def test_view_samples_records_of_a_kind_uniformly(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [release_record(i) for i in range(20)])
    times = Counter(card.record for seed in range(200) for card in draw(tmp_path, [file], 5, seed).cards)
    # 200 draws of 5 out of 20: 50 each, with a standard deviation of 6.
    assert len(times) == 20
    assert 25 < min(times.values()) <= max(times.values()) < 75


def test_view_keeps_only_the_sample_in_memory(tmp_path):
    file = tmp_path / "long.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for i in range(1500):
            out.write(json.dumps(release_record(i, problem=f"{i} " + "word " * 6000)) + "\n")
    assert file.stat().st_size > 45e6
    tracemalloc.start()
    try:
        assert len(draw(tmp_path, [file], 5).cards) == 5
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()


def test_view_shows_each_record_as_left_by_last_step(tmp_path):
    first = {"step": "generate", "read": 6, "written": 6, "rejected": {}}
    verify = write_step(tmp_path / "z", [kept(i) for i in range(4)], [dropped(9, WRONG)], "verify", (first,))
    second = {"step": "verify", "read": 5, "written": 4, "rejected": {}}
    judge = write_step(tmp_path / "j", [kept(0), kept(1)], [dropped(2, UNCLEAR)], "judge", (first, second))
    for inputs in ([verify, judge], [judge, verify]):
        shown = {card.record: card.reason for card in draw(tmp_path, inputs).cards}
        assert shown == {
            "0": "",
            "1": "",
            "2": "judge: insufficient observation",
            "3": "",
            "9": "verify: accuracy below 0.6",
        }


def test_view_shows_folder_where_all_records_were_dropped(tmp_path):
    folder = write_step(tmp_path / "none", [], [dropped(1, FORMAT)])
    (folder / "part-00000.jsonl").unlink()
    assert [card.state for card in draw(tmp_path, [folder]).cards] == ["dropped"]


def test_card_of_kept_record_has_expected_fields():
    shown = card(output=response("A"), verdict=YES, generated_by="a-model", data_source="STAR")
    assert (shown.observation, shown.think, shown.answer, shown.raw) == (OBSERVATION, THINKING, "A", "")
    assert (shown.state, shown.reason, shown.message) == ("kept", "", "")
    assert shown.verdict == {"value": "true", "reason": YES["reason"], "source": "judge"}
    assert (shown.record, shown.where, shown.source, shown.generated_by) == ("1", "a.jsonl:3", "STAR", "a-model")
    assert (shown.accuracy, shown.solution, shown.path) == (1.0, "A", "STAR/Charades_v1_480/1ab.mp4")
    assert shown.more == '{\n  "clean_version": 2\n}'


@pytest.mark.parametrize(
    ("options", "solution", "answer", "correct", "chosen"),
    [
        (["A. one", "B. two", "C. three"], "<answer>B</answer>", "C", 1, 2),
        (["one", "two", "three"], "C", "(a)", 2, 0),
        (["A. one", "B. two"], "two", "two", 1, 1),
        (["A. one", "B. two"], "A", "neither", 0, None),
        ([f"word {i}" for i in range(100)], "D", "word 7", 3, 7),
    ],
)
def test_card_marks_options_as_reward_reads_them(options, solution, answer, correct, chosen):
    shown = card(options=options, solution=solution, answer=None, output=response(answer)).options
    assert [option.text for option in shown] == options
    assert [i for i, option in enumerate(shown) if option.correct] == ([] if correct is None else [correct])
    assert [i for i, option in enumerate(shown) if option.chosen] == ([] if chosen is None else [chosen])


def test_card_shows_malformed_response_as_raw_text():
    raw = "A ball. <think>it is red</think> B"
    shown = card(output=raw, observation=None, process=None, dropped=FORMAT)
    assert (shown.observation, shown.think, shown.answer, shown.raw) == ("", "it is red", "", raw)
    assert (shown.state, shown.reason, shown.message) == ("dropped", "verify: format", FORMAT["message"])


def test_card_of_response_in_parts_invents_no_answer():
    shown = card(output=None, observation=f"<observation>{OBSERVATION}</observation>")
    assert (shown.observation, shown.think, shown.answer, shown.raw) == (OBSERVATION, THINKING, "", "")
    bare = card(output=None, observation=None, process=None)
    assert (bare.observation, bare.think, bare.answer, bare.raw) == ("", "", "", "")


def test_records_not_selected_in_release_count_as_dropped():
    assert (card(select="False").state, card(select="False").reason) == ("dropped", "not selected")
    assert card(select=None).state == "kept"


@pytest.mark.parametrize("odd", [7, [], "text", None, {"value": [1], "reason": {"a": 1}}, {}])
def test_card_accepts_malformed_fields(odd):
    shown = card(verdict=odd, dropped=odd, generated_by=odd)
    assert shown.state == ("kept" if odd is None else "dropped") or not isinstance(odd, dict)
    assert shown.verdict is None or shown.verdict["source"] == ""


def test_card_shortens_long_texts_and_option_lists():
    shown = card(problem="é" * 1_000_000, options=[f"option {i}" for i in range(300)], solution="A", answer=None)
    assert len(shown.question) < TEXT + 40
    assert shown.question.endswith("[980,000 more characters]")
    assert (len(shown.options), shown.more_options) == (120, 180)


def test_view_command_writes_page_despite_broken_media(tmp_path, make_clip):
    media = tmp_path / "media"
    (media / "STAR").mkdir(parents=True)
    (media / "STAR" / "good.mp4").write_bytes(make_clip(20, 5).read_bytes())
    (media / "STAR" / "broken.mp4").write_bytes(b"no video")
    (media / "STAR" / "broken.png").write_bytes(b"\x89PNG no image")
    keep = [kept(1, path="STAR/good.mp4"), kept(2, path="STAR/broken.mp4"), kept(3, path="STAR/gone.mp4")]
    drop = [dropped(4, UNCLEAR, **{**image(4), "path": "STAR/broken.png"}, verdict=NO)]
    folder = write_step(tmp_path / "judge", keep, drop)
    (folder / "part-00001.jsonl").write_text('{"problem": "no path"}\n')
    out = tmp_path / "new" / "page.html"
    command = ["view", str(folder), "--out", str(out), "--media-root", str(media), "--frames", "3"]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "1 records rejected" in done.output
    assert "3 media cannot be shown" in done.output
    assert "4 of 4 records" in done.output
    page = out.read_text(encoding="utf-8")
    assert f"{out}: 4 of 4 records, {len(page.encode()) / (1 << 20):.1f} MiB" in done.output
    assert page.count('src="data:image/jpeg;base64,') == 3
    assert "gone.mp4 does not exist: unpack it there, or set the media root" in page
    for broken in ("STAR/broken.mp4", "STAR/broken.png"):
        assert str(media / broken) in page
    assert [file.name for file in out.parent.iterdir()] == ["page.html"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert out.read_text(encoding="utf-8") == page


def test_view_refuses_to_overwrite_input_records(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [release_record(1)])
    done = CliRunner().invoke(app, ["view", str(file), "--out", str(file)], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "name another file" in done.output
    assert len(lines_of(file)) == 1


@pytest.mark.parametrize("inputs", [["no.jsonl"], ["."]])
def test_view_inputs_without_records_are_refused(tmp_path, monkeypatch, inputs):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["view", *inputs, "--out", "page.html"])
    assert done.exit_code == 2
    assert "name files of records" in done.output.replace("\n", " ")


def test_view_without_records_writes_empty_page(tmp_path):
    sample = draw(tmp_path, [write_lines(tmp_path / "a.jsonl", [])])
    page = write_page(sample, tmp_path / "page.html", tmp_path, 8)
    assert page.faults == []
    assert "No record matches" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_write_page_reports_progress_per_record(tmp_path, unequal):
    told = []
    sample = draw(tmp_path, [unequal], 30)
    write_page(sample, tmp_path / "page.html", tmp_path, 8, lambda: told.append(1))
    assert len(told) == 30


def test_view_shows_video_part_named_by_record(tmp_path, make_clip):
    clip = make_clip(40, 4)
    rules = [{"video_start": 0.0, "video_end": 2.0}, {"video_start": 5.0, "video_end": 7.0}, {"video_start": 99.0}]
    records = [release_record(i, path=clip.name, media=own, facts=["red"]) for i, own in enumerate(rules)]
    sample = draw(tmp_path, [write_lines(tmp_path / "a.jsonl", records)])
    page = write_page(sample, tmp_path / "page.html", clip.parent, 2)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(f"<span>{seconds} s</span>" in html for seconds in ("0.00", "2.00", "5.00", "7.00"))
    (fault,) = page.faults
    assert "its sampling rules cannot be met" in fault
    for one in sample.cards:
        more = json.loads(one.more)
        assert more["media"] == rules[int(one.record)]
        assert more["facts"] == [{"state": "red", "not": []}]
