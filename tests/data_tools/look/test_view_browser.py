# SPDX-License-Identifier: Apache-2.0
"""The page in a real headless browser: filters, pictures, keys, and that nothing of a record runs or is fetched."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from view_records import FORMAT, NO, UNCLEAR, WRONG, dropped, image, kept, write_step

from data_tools.look.selection import Selection, sources_of
from data_tools.look.view import write_page
from data_tools.records.left_out import RejectLog

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ATTACK = (
    "<script>window.pwned = 1</script></script><script>window.pwned = 2</script><img src=x onerror='window.pwned = 3'>"
    '" onfocus="window.pwned = 4" autofocus x="\' onfocus=\'window.pwned = 5\' autofocus --><!-- ]]> &lt;b&gt; '
    "{{ 6 * 7 }} {% raw %} </style><style>*{display:none}</style> </textarea></title><svg onload=window.pwned=6> "
    "<iframe src='javascript:window.pwned=7'></iframe><base href='http://evil.test/'> \u2028 \x00 \u202e ${7*6} \\u003c"
)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=path)
        yield running
        running.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable]:
    """`open_page(path, **context)`: the page, with what it asked for in `asked` and what went wrong in `errors`."""
    contexts = []

    def opened(path: Path, hash: str = "", **how):
        context = browser.new_context(**how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.asked, page.errors = [], []
        context.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
        page.on("dialog", lambda dialog: page.errors.append(f"a dialog: {dialog.message}"))
        page.goto(path.as_uri() + hash)
        return page

    yield opened
    for context in contexts:
        context.close()


def write(folder: Path, keep: list[dict], drop: list[dict], media: Path, frames: int = 4) -> Path:
    step = write_step(folder / "judge", keep, drop)
    with RejectLog(folder / "rejects.jsonl") as rejects:
        sample = Selection.draw(sources_of([step]), 100, 0, rejects)
    assert not rejects.reasons
    write_page(sample, folder / "page.html", media, frames)
    return folder / "page.html"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, make_clip) -> Path:
    """6 kept and 5 dropped records: 7 about videos, one of them missing, and 4 about images."""
    folder = tmp_path_factory.mktemp("view")
    media = folder / "media"
    for name in ("STAR", "Chart"):
        (media / name).mkdir(parents=True)
    (media / "STAR" / "a.mp4").write_bytes(make_clip(20, 5).read_bytes())
    for number in (4, 5, 8, 9):
        Image.new("RGB", (64, 48), (200, 20 * number, 40)).save(media / "Chart" / f"{number}.png")
    star = {"path": "STAR/a.mp4", "data_source": "STAR"}
    chart = {"data_source": "Chart & Co"}
    keep = [kept(i, **star) for i in range(3)]
    keep += [kept(3, **{**star, "path": "STAR/gone.mp4"})]
    keep += [kept(i, **image(i), **chart) for i in (4, 5)]
    drop = [dropped(6, WRONG, **star), dropped(7, FORMAT, **star, observation=None, process=None)]
    drop[1]["output"] = "A ball, plainly. <answer>A</answer>"
    drop += [dropped(8, UNCLEAR, **image(8), **chart, verdict=NO), dropped(9, UNCLEAR, **image(9), **chart, verdict=NO)]
    drop += [dropped(10, WRONG, **star, problem="Where does the zebra stand?")]
    return write(folder, keep, drop, media)


def shown(page) -> set[str]:
    return set(
        page.eval_on_selector_all(
            "article", "all => all.filter(a => a.checkVisibility()).map(a => a.querySelector('b').textContent)"
        )
    )


def count(page) -> str:
    return page.inner_text("#count")


FILTERS = [
    ("problem_type", "numerical", {"4", "5", "8", "9"}),
    ("source", "Chart & Co", {"4", "5", "8", "9"}),
    ("modality", "video", {"0", "1", "2", "3", "6", "7", "10"}),
    ("state", "dropped", {"6", "7", "8", "9", "10"}),
    ("reason", "verify: accuracy below 0.6", {"6", "10"}),
]


@pytest.mark.parametrize(("name", "value", "expected"), FILTERS, ids=[name for name, _, _ in FILTERS])
def test_view_filter_shows_matching_records_and_count(open_page, page_file, name, value, expected):
    page = open_page(page_file)
    assert count(page) == "11 of 11"
    assert len(shown(page)) == 11
    page.select_option(f"select[name={name}]", value)
    assert shown(page) == expected
    assert count(page) == f"{len(expected)} of 11"
    page.click("button[type=reset]")
    playwright.expect(page.locator("#count")).to_have_text("11 of 11")
    assert len(shown(page)) == 11
    assert page.errors == []


def test_view_filters_combine_and_persist_in_url(open_page, page_file):
    page = open_page(page_file)
    page.select_option("select[name=state]", "dropped")
    page.select_option("select[name=modality]", "image")
    assert shown(page) == {"8", "9"}
    page.fill("input[name=q]", "BARS never")  # words of the question and of the judge, in any case
    assert shown(page) == {"8", "9"}
    page.fill("input[name=q]", "zebra")
    assert (shown(page), count(page)) == (set(), "0 of 11")
    assert page.is_visible("#none")
    page.select_option("select[name=modality]", "")
    assert shown(page) == {"10"}
    assert not page.is_visible("#none")
    page.reload()
    assert shown(page) == {"10"}
    assert page.input_value("input[name=q]") == "zebra"
    again = open_page(page_file, hash=page.evaluate("location.hash"))
    assert (shown(again), again.input_value("select[name=state]")) == ({"10"}, "dropped")
    again.evaluate("location.hash = 'source=Chart+%26+Co&state=kept'")
    playwright.expect(again.locator("#count")).to_have_text("2 of 11")
    assert shown(again) == {"4", "5"}
    odd = open_page(page_file, hash="#state=nonsense&unknown=1&q=%E0%A4%A")
    assert odd.errors == []
    assert odd.input_value("select[name=state]") == ""


def test_view_pictures_load_and_enlarge_on_click(open_page, page_file):
    page = open_page(page_file)
    sizes = page.eval_on_selector_all("article img", "all => all.map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(sizes) == 6 * 4 + 4  # the one that is missing has none
    assert all(complete and natural > 0 and 0 < wide < 500 for complete, natural, wide in sizes)
    times = page.eval_on_selector_all("article:has(b:text-is('0')) .frame span", "all => all.map(s => s.textContent)")
    assert times == ["0.00 s", "1.00 s", "2.80 s", "3.80 s"]
    # The frames' greys tell their indices: 0, 5, 14, 19 at 5 frames a second.
    greys = page.eval_on_selector_all(
        "article:has(b:text-is('0')) img",
        """all => all.map(image => {
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
            canvas.drawImage(image, 0, 0);
            return canvas.getImageData(20, 20, 1, 1).data[0];
        })""",
    )
    assert np.allclose(greys, [16 + 5 * i for i in (0, 5, 14, 19)], atol=4)
    assert "gone.mp4 does not exist" in page.inner_text("article:has(b:text-is('3')) .error")
    page.click("article:has(b:text-is('0')) .frame >> nth=1")
    large = page.locator("dialog img")
    assert large.bounding_box()["height"] > 300
    assert "1.00 s" in page.inner_text("dialog p")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("dialog p") == "frame at 2.80 s of STAR/a.mp4 · 3 of 4"
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert "1 of 4" in page.inner_text("dialog p")
    page.click("dialog button[data-step='-1']")
    assert "4 of 4" in page.inner_text("dialog p")
    page.keyboard.press("Escape")
    assert not large.is_visible()
    assert page.evaluate("document.activeElement.className") == "frame"
    page.click("article:has(b:text-is('4')) .frame")
    assert not page.is_visible("dialog button >> nth=0")
    page.click("dialog img")
    assert not large.is_visible()


def test_view_page_is_usable_by_keyboard_alone(open_page, page_file):
    page = open_page(page_file)
    page.keyboard.press("/")
    page.keyboard.type("jjk/")  # is text here
    assert page.input_value("input[name=q]") == "jjk/"
    page.fill("input[name=q]", "")
    page.evaluate("document.activeElement.blur()")
    order = page.eval_on_selector_all("article b:first-of-type", "all => all.map(b => b.textContent)")
    here = "document.activeElement.querySelector('.facts b')?.textContent"
    reached = []
    for key in "jjjkkjj":
        page.keyboard.press(key)
        reached.append(page.evaluate(here))
    every = [text for text in order if text.isdigit()]
    assert reached == [every[i] for i in (0, 1, 2, 1, 0, 1, 2)]
    assert reached[-1] not in ("3", "")  # the one without pictures
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.is_visible("dialog img")


def test_view_card_shows_record_fields_in_place(open_page, page_file):
    page = open_page(page_file)

    def says(record: str) -> str:
        return page.inner_text(f"article:has(b:text-is('{record}'))")

    assert "✓ correct · answered" in says("0")
    assert "answered" in page.inner_text("article:has(b:text-is('6')) li.wrong")
    assert "verify: accuracy below 0.6" in says("6")
    assert WRONG["message"] in says("6")
    assert "A ball, plainly. <answer>A</answer>" in says("7")
    assert "does not follow the template" in says("7")
    assert "does not follow the template" not in says("0")
    assert "(cache)" in says("8")
    assert NO["reason"] in says("8")
    assert page.inner_text("article:has(b:text-is('8')) .judge .badge") == "No"
    assert page.inner_text("article:has(b:text-is('0')) .judge .badge") == "Yes"
    assert "Correct answer\n7" in says("8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_view_theme_follows_system_and_can_be_switched(open_page, page_file, scheme):
    page = open_page(page_file, color_scheme=scheme)
    back = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    light = {True: "light", False: "dark"}
    assert light[min(page.evaluate(back)) > 200] == scheme
    page.click("#theme")
    assert light[min(page.evaluate(back)) > 200] != scheme
    page.click("#theme")
    assert light[min(page.evaluate(back)) > 200] == scheme


@pytest.mark.parametrize("width", [380, 1360, 2400])
def test_view_page_fits_window_width(open_page, page_file, width):
    page = open_page(page_file, viewport={"width": width, "height": 900})
    page.click("header summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('.segment .text').clientWidth") <= 760


@pytest.fixture(scope="module")
def attacked(tmp_path_factory) -> Path:
    """A page of records that are attacks wherever a record can say something."""
    folder = tmp_path_factory.mktemp("attack")
    said = dict.fromkeys(("problem", "observation", "process", "output", "data_source", "unknown"), ATTACK)
    said["options"] = [f"A. {ATTACK}", "B. b"]
    why = {"step": ATTACK, "reason": ATTACK, "message": ATTACK}
    verdict = {"value": ATTACK, "reason": ATTACK, "source": ATTACK}
    records = [
        dropped(1, why, **{**said, "problem_id": ATTACK, "path": "javascript:window.pwned=8", "verdict": verdict}),
        dropped(2, why, **{**said, "path": "a\"><img src=x onerror='window.pwned=9'>.mp4", ATTACK: ATTACK}),
        dropped(
            3, why, **{**image(3), **said, "options": [], "solution": ATTACK, "answer": None, "generated_by": ATTACK}
        ),
    ]
    return write(folder, [], records, folder)


def test_hostile_record_runs_no_script_and_fetches_nothing(open_page, attacked):
    text = attacked.read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script") == 1
    assert text.count("<style") == text.count("</style") == 1
    page = open_page(attacked)
    for summary in page.locator("summary").all():
        summary.click()
    page.fill("input[name=q]", "<script>window.pwned")
    assert count(page) == "3 of 3"
    page.evaluate("document.querySelectorAll('*').forEach(e => e.focus && e.focus())")
    assert page.evaluate("typeof window.pwned") == "undefined"
    assert page.evaluate("document.querySelectorAll('article script, article img, iframe, base, svg, a').length") == 0
    attributes = (
        "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes]).filter(a => /^on|^href$/.test(a.name))"
    )
    assert page.evaluate(f"{attributes}.map(a => a.value)") == ["data:,"]
    clean = ATTACK.replace("\x00", "")  # HTML has no such character
    for place in ("h2", "li span", ".segment .text", ".why b", ".why p", ".judge .text"):
        assert clean in page.text_content(f"article:has-text('javascript:window.pwned=8') {place}").replace(
            "\ufffd", ""
        )
    assert [url for url in page.asked if not url.startswith("data:")] == [attacked.as_uri()]
    assert page.errors == []


def test_view_page_makes_no_network_requests(open_page, page_file):
    page = open_page(page_file)
    page.select_option("select[name=state]", "kept")
    assert [url for url in page.asked if not url.startswith("data:")] == [page_file.as_uri()]


def test_view_content_security_policy_blocks_unneeded_content(open_page, attacked):
    """Were a text ever written unescaped, the policy would stop it still."""
    page = open_page(attacked)
    page.evaluate(
        """async () => {
            window.refused = [];
            document.addEventListener("securitypolicyviolation", e => refused.push(e.effectiveDirective));
            const add = (tag, what) => document.body.append(Object.assign(document.createElement(tag), what));
            add("script", { textContent: "window.pwned = 1" });
            add("script", { src: "http://evil.test/a.js" });
            add("img", { src: "http://evil.test/a.png" });
            add("iframe", { src: "http://evil.test/" });
            document.body.insertAdjacentHTML("beforeend", "<button id=x onclick='window.pwned = 2'>x</button>");
            document.getElementById("x").click();
            await fetch("http://evil.test/").catch(() => {});
        }"""
    )
    wanted = {"script-src-elem", "script-src-attr", "img-src", "frame-src", "connect-src"}
    for _ in range(100):
        refused = set(page.evaluate("refused"))
        if wanted <= refused:
            break
        page.wait_for_timeout(50)
    assert wanted <= refused
    assert page.evaluate("typeof window.pwned") == "undefined"
