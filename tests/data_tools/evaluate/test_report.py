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


def test_scores_stand_beside_their_setting_and_the_published_rows(page):
    text = page.read_text()
    assert "Protocol video_r1" in text
    assert "at most 32 frames (2 a second) of at most 200,704 pixels" in text
    assert "50.0 [18.8–81.2] n=6" in text  # three of six, to the letter
    assert "VideoP2R SFT + PA-GRPO, 7B" in text
    assert "missing file: 1" in text
    assert text.count("<article") == 12
    assert "Score over steps, protocol video_r1" in text
    assert ATTACK not in text


def test_a_run_with_too_many_lost_items_is_not_shown(page):
    output = invoke("report", page.parent / "step_20", "--out", page.parent / "other.html", code=2)
    assert "1 of 6 items of mmvu have no reply (missing file: 1)" in output


def test_tokens_belong_to_the_segment_in_which_they_begin(processor):
    text = REPLIES["validation_0"]
    for tokenizer in (None, processor.tokenizer):
        perception, reasoning = tokens_of(text, tokenizer)
        assert "".join(token.text for token in (*perception, *reasoning)) == text
        shown = "".join(token.text for token in perception)
        assert shown.startswith("<observation>A red ball rolls.</observation>")
        assert len(shown) <= len("<observation>A red ball rolls.</observation>\n<think>")
    assert tokens_of("") == ([], [])


def test_the_draw_is_even_and_the_same_for_a_seed():
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


def test_curves_of_a_training_come_from_its_own_files(tmp_path):
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report",), "name outputs of `run`, or the rollouts of a training"),
        (("report", "--rollouts", "nowhere"), r"holds no <step>\.jsonl"),
        (("report", "nowhere"), "cannot be read"),
    ],
)
def test_what_cannot_be_shown_is_said(arguments, message):
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


def test_the_page_in_a_browser(browser, page):
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
