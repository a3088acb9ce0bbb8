# SPDX-License-Identifier: Apache-2.0
"""The report of a quickstart run: numbers, page, curves and errors."""

import io
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
import pytest
from paths import QUICKSTART
from rich.console import Console

sys.path.insert(0, str(QUICKSTART))

import report
import run_data
from quickstart_runs import GROUP, PNG, SOURCES, fake_run, held_out, invoke, metrics_rows, rollout, write_rows


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "savefig.dpi", 30)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return fake_run(tmp_path / "run")


class Page(HTMLParser):
    """The text, tags, addresses and titles of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_data(self, data):
        self.text += data


def test_read_metrics_skips_nulls_and_prefers_resumed_steps(tmp_path):
    # A run stopped after step 3, resumed from step 1, and verl's logger truncated its file: part 1 was put aside.
    write_rows(tmp_path / "metrics.1.jsonl", [{"step": s, "data": {"a": float(s), "b": 7.0}} for s in (1, 2, 3)])
    write_rows(tmp_path / "metrics.jsonl", [{"step": s, "data": {"a": 10.0 * s, "b": None}} for s in (2, 3)])
    metrics = run_data.read_metrics(tmp_path / "metrics.jsonl", "RL")
    assert run_data.series(metrics, "a") == ([1, 2, 3], [1.0, 20.0, 30.0])
    assert run_data.series(metrics, "b") == ([1, 2, 3], [7.0, 7.0, 7.0])


def test_validation_reads_only_means_and_keeps_slashes_in_sources():
    metrics = {
        0: {
            "val-aux/a/b/c/reasoning_accuracy/mean@4": 0.25,
            "val-core/d/reasoning_accuracy/mean@1": 0.75,
            "val-aux/d/reasoning_accuracy/best@4/mean": 1.0,
            "val-aux/d/perception_accuracy/mean@1": 1.0,
        }
    }
    assert run_data.validation(metrics, "reasoning_accuracy") == {0: {"a/b/c": 0.25, "d": 0.75}}
    assert run_data.validation_mean(metrics, "reasoning_accuracy") == {0: 0.5}


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),  # published example, e.g. statsmodels proportion_confint(8, 10, method="wilson")
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I: 81/263 -> 0.2553 to 0.3662
        (15, 148, 0.0624, 0.1605),  # Newcombe 1998, table I: 15/148 -> 0.0624 to 0.1605
    ],
)
def test_share_has_published_wilson_interval(right, n, low, high):
    share = run_data.Share.of([1.0] * right + [0.0] * (n - right))
    assert (share.mean, share.n) == (right / n, n)
    assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)


def test_before_and_after_accuracy_are_means_of_rows(run_dir):
    notes: list[str] = []
    rows = {(row.mode, row.process): row for row in run_data.comparisons(run_dir, notes)}
    assert notes == []
    assert rows["sampled", "perception"].before.mean == 40 / 160
    assert rows["sampled", "perception"].after.mean == 152 / 160
    assert rows["sampled", "perception"].gain == pytest.approx(70.0)
    assert rows["greedy", "reasoning"].gain == pytest.approx(6.25)
    assert all(row.before.n == row.after.n == 160 for row in rows.values())


def test_report_without_eval_falls_back_to_trainer_validation(tmp_path):
    run_dir = fake_run(tmp_path, evaluation=False)
    result = invoke(report.main, run_dir)
    assert result.exit_code == 0, result.output
    page = Page((run_dir / "report.html").read_text(encoding="utf-8"))
    assert "20.0" in page.text  # 32 of 160
    assert "80.0" in page.text  # 128 of 160
    assert re.search(r"No greedy before/after accuracy: \S+sft_greedy\.jsonl is missing", page.text)
    assert "trainer's own validation" in page.text


def test_different_items_before_and_after_are_reported(run_dir):
    write_rows(run_dir / "eval" / "rl_greedy.jsonl", held_out(8, 8, 8))
    notes: list[str] = []
    run_data.comparisons(run_dir, notes)
    assert [note for note in notes if "not comparable" in note and "rl_greedy.jsonl" in note]


def test_rows_without_verdict_are_excluded_from_perception_share(run_dir):
    rows = held_out(152, 140, 160)
    rows[0]["perception_accuracy"] = None
    write_rows(run_dir / "eval" / "rl_sampled.jsonl", rows)
    first = run_data.comparisons(run_dir, [])[0]
    assert (first.process, first.after.n, first.after.mean) == ("perception", 159, 151 / 159)


def test_the_instructive_rollout_has_advantages_of_opposite_sign(run_dir):
    # Step 1 has larger advantages, but of one sign; in step 2 the first row has the largest smaller one.
    best = run_data.instructive_rollout(run_dir / "rl" / "rollouts")
    assert (best.step, best.row["output"], len(best.group)) == (2, GROUP[0]["output"], 4)
    assert (best.advantage("perception"), best.advantage("reasoning")) == (1.5, -1.5)
    assert best.summed_advantage == 0.0  # the sum is 3 for all four: GRPO would see nothing to learn


def test_summed_advantage_equals_grpo_advantage():
    group = [rollout("g_0_0", (0, 0), rewards) for rewards in ((2.0, 1.0), (1.0, 1.0), (0.0, 0.0))]
    sums = [3.0, 2.0, 0.0]
    expected = (3.0 - fmean(sums)) / (stdev(sums) + 1e-6)
    assert run_data.Rollout(1, group[0], group).summed_advantage == pytest.approx(expected)
    assert run_data.Rollout(1, group[0], group[:1]).summed_advantage == 0.0


def test_a_response_without_perception_segment_has_no_perception_advantage(tmp_path):
    row = rollout("g_0_0", (0.0, 1.0), (0.0, 1.0)) | {"perception_tokens": 0}
    write_rows(tmp_path / "1.jsonl", [row])
    best = run_data.instructive_rollout(tmp_path)
    assert best.advantage("perception") is None
    assert best.advantage("reasoning") == pytest.approx(0.6)  # four zeros and six ones


def test_the_page_is_self_contained_and_escapes_model_output(run_dir):
    result = invoke(report.main, run_dir)
    assert result.exit_code == 0, result.output
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text
    assert "link" not in page.tags
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "http" not in html
    assert "url(" not in html


def test_every_token_is_drawn_in_its_segment_with_its_advantage(run_dir):
    html = report.render(report.build(run_dir))
    titles = Page(html).titles
    assert titles[:4] == [f"token {i} · perception · advantage +1.500" for i in range(4)]
    assert titles[4:] == [f"token {i} · reasoning · advantage -1.500" for i in range(4, 10)]
    assert html.count('<div class="tokens perception">') == html.count('<div class="tokens reasoning">') == 1


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [(1.0, "right"), (0, "wrong"), (0.5, "accuracy 0.50"), (None, "no verdict"), (float("nan"), "no verdict")],
)
def test_report_segment_shows_its_verdict(run_dir, accuracy, verdict):
    write_rows(run_dir / "rl" / "rollouts" / "2.jsonl", [GROUP[0] | {"perception_accuracy": accuracy}])
    text = Page(report.render(report.build(run_dir))).text
    assert f"perception · 4 tokens · advantage +1.50 · {verdict}" in text
    assert "reasoning · 6 tokens · advantage −1.50 · wrong" in text


def test_report_tables_show_expected_numbers(run_dir):
    built = report.build(run_dir)
    page = Page(report.render(built)).text
    for number in ("25.0", "95.0", "+70.0", "37.5", "87.5", "+50.0", "+22.5", "+6.2"):
        assert number in page
    passed = {check.label: check.passed for check in built.checks}
    assert passed == {
        "perception, sampled": True,
        "answer, sampled": True,
        "perception, greedy": True,
        "answer, greedy": False,  # +6.25 points, and 10 are wanted
        "held-out items": True,
        "trainer–rollout correlation, lowest": True,
    }
    assert built.sources[0] == {"source": SOURCES[0], "perception": (0.4, 0.9), "reasoning": (0.4, 0.9)}
    assert [row["source"] for row in built.sources] == list(SOURCES)


def test_one_bad_step_misses_the_correlation_target(run_dir):
    rows = metrics_rows(8)
    rows[3]["data"]["training/rollout_actor_probs_pearson_corr"] = 0.998
    write_rows(run_dir / "rl" / "metrics.jsonl", rows)
    check = report.build(run_dir).checks[-1]
    assert (check.value, check.passed) == ("0.99800", False)


def test_total_stage_time_is_checked_against_target(run_dir):
    (run_dir / "timings.json").write_text('{"data": 20, "SFT": 240, "RL": 700}')
    built = report.build(run_dir)
    assert (built.checks[-1].value, built.checks[-1].passed) == ("16.0 min", False)
    assert ("RL steps", "8 × 12.0 s, 5.0 s of it sampling") in built.timings


def test_terminal_summary_fits_screen_and_shows_results(run_dir):
    (run_dir / "timings.json").write_text('{"data": 20, "model": 5, "SFT": 240, "RL": 300, "evaluation": 60}')
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.screen(report.build(run_dir)))
    text = console.export_text()
    assert len(text.splitlines()) <= 40
    assert re.search(r"perception, sampled.*25\.0 \[19–32\].*95\.0 \[90–97\].*\+70\.0.*160", text)
    assert re.search(r"missed\s+answer, greedy\s+\+6\.2 points", text)
    assert "report.html" in text.replace("\n", "").replace(" ", "")


def test_the_curves_are_png_files(run_dir):
    figures = report.build(run_dir).figures
    assert set(figures) == {*report.CAPTIONS, "before_after"}
    assert all(path.parent == run_dir / "figures" and path.read_bytes().startswith(PNG) for path in figures.values())


def test_report_requires_only_rl_metrics(tmp_path):
    write_rows(tmp_path / "rl" / "metrics.jsonl", [{"step": 1, "data": {"actor/grad_norm": 1.0}}])
    result = invoke(report.main, tmp_path)
    assert result.exit_code == 0, result.output
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "No SFT curve" in text
    assert "No sampled before/after accuracy" in text
    assert "No rollout to show" in text
    assert "so not drawn: rewards, accuracy, format, lengths, collapse." in text


def _remove_metrics(run_dir: Path) -> None:
    (run_dir / "rl" / "metrics.jsonl").unlink()


def _append(name: str, line: str):
    def change(run_dir: Path) -> None:
        with (run_dir / name).open("a") as file:
            file.write(line)

    return change


BAD_INPUT = [
    (_remove_metrics, r"rl/metrics\.jsonl is missing: run the RL stage"),
    (lambda run: (run / "rl" / "metrics.jsonl").write_text("\n"), r"rl/metrics\.jsonl is empty: the RL stage"),
    (_append("rl/metrics.jsonl", '{"step": 9, "da'), r"rl/metrics\.jsonl, line 10: not JSON"),
    (_append("rl/metrics.jsonl", "[1]"), r"rl/metrics\.jsonl, line 10: not a JSON object"),
    (_append("rl/metrics.jsonl", '{"step": 9}'), r"rl/metrics\.jsonl, line 10: field 'data' is missing"),
    (
        _append("eval/rl_greedy.jsonl", '{"input": "", "gts": "", "reasoning_accuracy": 1}'),
        r"eval/rl_greedy\.jsonl, line 161: field 'perception_accuracy' is missing",
    ),
    (
        _append("rl/rollouts/2.jsonl", json.dumps(GROUP[0] | {"advantages": [1.0]})),
        r"rollouts/2\.jsonl, row 5: 10 'tokens' but 1 'advantages'",
    ),
    (
        _append("rl/rollouts/2.jsonl", json.dumps(GROUP[0] | {"perception_tokens": 11})),
        r"rollouts/2\.jsonl, row 5: 'perception_tokens' is outside",
    ),
    (lambda run: (run / "timings.json").write_text('{"rl": "long"}'), r"timings\.json: expected"),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUT)
def test_invalid_report_input_is_named(run_dir, change, message):
    change(run_dir)
    with pytest.raises(run_data.RunError, match=message):
        report.build(run_dir)


def test_line_separators_inside_strings_do_not_end_a_row(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"output": "a\u2028b\x85c"}])
    assert run_data.read_rows(tmp_path / "rows.jsonl", "RL") == [{"output": "a\u2028b\x85c"}]


def test_report_script_exits_1_with_message_for_missing_run(tmp_path):
    command = [sys.executable, str(QUICKSTART / "report.py"), str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nowhere does not exist" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_instructive_rollout_matches_slow_search(tmp_path):
    """Against a slow search: of the rows with opposite signs, the largest smaller magnitude."""
    draw = random.Random(3)
    expected = (0.0, None)
    for step in range(1, 4):
        rows = []
        for number in range(20):
            pair = (draw.uniform(-2, 2), draw.uniform(-2, 2))
            rows.append(rollout(f"g{number // 4}_{number % 4}_0", pair, (1.0, 1.0)))
            if pair[0] * pair[1] < 0 and min(map(abs, pair)) > expected[0]:
                expected = (min(map(abs, pair)), (step, pair))
        write_rows(tmp_path / f"{step}.jsonl", rows)
    best = run_data.instructive_rollout(tmp_path)
    assert best.step == expected[1][0]
    assert (best.advantage("perception"), best.advantage("reasoning")) == pytest.approx(expected[1][1])
