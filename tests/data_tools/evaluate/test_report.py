# SPDX-License-Identifier: Apache-2.0
"""The report: its content, and that it works in a real browser."""

import json
import re
import shutil

import benchmark_files
import pytest
from evaluated_run import make_run, response
from typer.testing import CliRunner

from data_tools.evaluate.cards import draw, tokens_of
from data_tools.evaluate.cli import app
from data_tools.evaluate.rollouts import Rollouts
from data_tools.records.files import files_of
from data_tools.steps.judge import JudgeStepSettings, judge

ATTACK = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>{{ 6 * 7 }}"
REPLIES = {
    "validation_0": response("A red ball rolls.", "So the answer is A.", "A"),
    "validation_1": response(f"A ball {ATTACK}", "So the answer is A.", "A"),
    "validation_2": response("A blue ball rolls.", "It looks blue.", "C"),
    "validation_3": "A",
    "validation_4": response("A green ball.", "Hm.", "(B)"),
    "validation_5": None,
}


def invoke(*arguments, code=0):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = [make_run(folder, REPLIES, name) for name in ("step_20", "step_40")]
    benchmark_files.write_videos(folder / "mmvu", {f"videos/Art/{i}.mp4": "red" for i in range(5)})
    options = ["--media-root", folder / "mmvu", "--max-lost", "0.2", "--frames", "3"]
    invoke("report", *runs, "--out", folder / "page.html", *options)
    return folder / "page.html"


def test_scores_are_shown_with_their_setting_and_published_rows(page):
    text = page.read_text()
    assert "Protocol video_r1" in text
    assert "at most 32 frames (2 a second) of at most 200,704 pixels" in text
    assert "50.0 [18.8–81.2] n=6" in text  # three of six, to the letter
    assert "VideoP2R SFT + PA-GRPO, 7B" in text
    assert "missing file: 1" in text
    assert text.count("<article") == 12
    assert "Score over steps, protocol video_r1" in text
    assert ATTACK not in text


def test_verdicts_of_judges_are_on_the_cards(page, tmp_path, judge_server):
    """Three of the four observations hold a colour, and two thoughts name their option outright."""
    run = page.parent / "step_20"
    judge_server.control(yes_when="red|blue|green")
    judged = JudgeStepSettings(kwargs={"model": "judge", "base_urls": judge_server.base_url}, health_check=False)
    judge(files_of([run]), tmp_path / "judged", judged, max_reject_share=1.0)
    invoke("mismatch", run, "--out", tmp_path / "mm")
    verdicts = ["--verdicts", tmp_path / "judged", "--verdicts", tmp_path / "mm", "--max-lost", "0.2"]
    invoke("report", run, "--out", tmp_path / "page.html", *verdicts)
    text = (tmp_path / "page.html").read_text()
    cards = {re.search(r"<b>mmvu/(\w+)</b>", card)[1]: card for card in text.split("<article")[1:]}
    found = {name: re.search(r'data-verdict="([\w ]*)"', card)[1] for name, card in cards.items()}
    assert found == {
        "validation_0": "Yes",
        "validation_1": "No",
        "validation_2": "Yes",
        "validation_3": "no verdict",  # not in the template
        "validation_4": "Yes",
        "validation_5": "no verdict",  # lost
    }
    assert '<span class="badge No">judge: No</span>' in cards["validation_1"]
    assert "The judge: " in cards["validation_1"]
    assert "<span>thinking: A</span>" in cards["validation_1"]
    assert "thinking:" not in cards["validation_2"]
    assert '<option value="no verdict">' in text


def test_a_mismatch_is_shown_on_its_card(tmp_path):
    run = make_run(tmp_path, {"validation_0": response("o", "So the answer is B.", "A")})
    invoke("mismatch", run, "--out", tmp_path / "mm")
    invoke("report", run, "--out", tmp_path / "page.html", "--verdicts", tmp_path / "mm")
    text = (tmp_path / "page.html").read_text()
    assert "The thinking concludes with B, the answer is A" in text
    assert 'data-verdict=""' in text
    output = invoke(
        "report", run, "--out", tmp_path / "page.html", "--verdicts", tmp_path / "prepared" / "mmvu", code=2
    )
    assert "holds no verdicts: name an output of `verl-p2r-data judge` or `verl-p2r-eval mismatch`" in output


def test_report_refuses_run_with_too_many_lost_items(page):
    output = invoke("report", page.parent / "step_20", "--out", page.parent / "other.html", code=2)
    assert "1 of 6 items of mmvu have no reply (missing file: 1)" in output


def test_report_token_belongs_to_segment_where_it_starts(processor):
    text = REPLIES["validation_0"]
    for tokenizer in (None, processor.tokenizer):
        perception, reasoning = tokens_of(text, tokenizer)
        assert "".join(token.text for token in (*perception, *reasoning)) == text
        shown = "".join(token.text for token in perception)
        assert shown.startswith("<observation>A red ball rolls.</observation>")
        assert len(shown) <= len("<observation>A red ball rolls.</observation>\n<think>")
    assert tokens_of("") == ([], [])


def test_report_sample_is_balanced_and_reproducible_by_seed():
    found = [(("a", str(i % 10 == 0)), str(i), i) for i in range(100)]
    drawn = draw(found, 10, seed=1)
    assert sum(value % 10 == 0 for value in drawn) == 5
    assert draw(reversed(found), 10, seed=1) == drawn
    assert draw(found, 10, seed=2) != drawn


def rollouts(folder, steps=2):
    """Two groups of two: in the second step both rewards of the first group are equal."""
    folder.mkdir()
    for step in range(1, steps + 1):
        rows = []
        for group in range(2):
            for session in range(2):
                reward = 1.0 if step == 2 and group == 0 else float(session)
                row = {"input": "Which?", "output": REPLIES["validation_0"], "gts": "A", "score": 1.0, "step": step}
                row |= {
                    "uid": f"g{group}_{session}_0",
                    "tokens": ["<obs", "ervation>", "A"],
                    "advantages": [0.5, -1, 0],
                }
                row |= {
                    f"{p}_{n}": reward for p in ("perception", "reasoning") for n in ("reward", "accuracy", "format")
                }
                rows.append(row | {"perception_tokens": 2, "reasoning_tokens": 1, "judge_error": ""})
        (folder / f"{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_training_curves_come_from_rollout_files(tmp_path):
    own = Rollouts.read(rollouts(tmp_path / "rollouts"))
    assert own.curve("reward", "perception") == [(1, 0.5), (2, 0.75)]
    assert own.curve("collapse", "reasoning") == [(1, 0.0), (2, 0.5)]
    assert own.curve("tokens", "perception") == [(1, 2), (2, 2)]
    invoke("report", "--rollouts", tmp_path / "rollouts", "--out", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<svg") == 5
    assert text.count("<article") == 8
    assert '<span class="down4" title="token 1, advantage -1.000">ervation&gt;</span>' in text
    assert "judge: Yes" in text


def test_validation_curves_by_benchmark(tmp_path):
    """`trainer.validation_data_dir` after steps 0 and 20."""
    for step, right in ((0, 1), (20, 2)):
        rows = [{"output": "x", "data_source": "mmvu", "acc": float(i < right)} for i in range(4)]
        rows += [{"output": "x", "data_source": "vsi_bench", "acc": 0.3}]
        (tmp_path / f"{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Rollouts.read(tmp_path).scores() == {
        "mmvu": [(0, 0.25), (20, 0.5)],
        "vsi_bench": [(0, 0.3), (20, 0.3)],
    }
    invoke("report", "--rollouts", tmp_path, "--out", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Accuracy of the answers by data source" in text
    assert "<title>VSI-Bench, 20: 30 %</title>" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report",), "name outputs of `run`, or the rollouts of a training"),
        (("report", "--rollouts", "nowhere"), r"holds no <step>\.jsonl"),
        (("report", "nowhere"), "cannot be read"),
        (("report", "--rollouts", "nowhere", "--verdicts", "v"), "--verdicts is about outputs of `run`: leave it out"),
    ],
)
def test_unusable_arguments_are_rejected(arguments, message):
    assert re.search(message, invoke(*arguments, code=2))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no browser on the PATH")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=path)
        yield running
        running.close()


def test_report_page_works_in_browser(browser, page):
    tab = browser.new_page()
    asked, errors = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    tab.goto(page.as_uri())
    count = tab.locator("#count")
    assert count.inner_text() == "12 of 12"
    tab.select_option("select[name=outcome]", "lost")
    assert count.inner_text() == "2 of 12"
    tab.select_option("select[name=run]", "step_40")
    assert count.inner_text() == "1 of 12"
    tab.click("button[type=reset]")
    tab.get_by_text("12 of 12").wait_for()
    tab.fill("input[name=q]", "green HM.")
    tab.get_by_text("2 of 12").wait_for()
    tab.fill("input[name=q]", "no such word")
    assert tab.locator("#none").is_visible()
    tab.fill("input[name=q]", "")
    right = tab.locator("article[data-outcome=right]").first
    assert right.locator("img").count() == 3
    assert right.locator("img").first.evaluate("image => image.naturalWidth") > 50
    assert right.locator("li.correct").count() == 1
    colours = [
        tab.locator(f".tokens.{name}").first.evaluate("e => getComputedStyle(e).borderLeftColor")
        for name in ("perception", "reasoning")
    ]
    assert colours[0] != colours[1]
    assert tab.evaluate("window.pwned") is None
    assert not errors
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.close()
