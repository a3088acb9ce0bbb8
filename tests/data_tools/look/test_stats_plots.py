# SPDX-License-Identifier: Apache-2.0
"""The pictures of statistics: which are drawn, that what they show is what was counted, and names of any kind."""

import random
import warnings
from collections import Counter

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from release_files import release_record, write_lines
from typer.testing import CliRunner

from data_tools.cli import app
from data_tools.look import stats_plots
from data_tools.look.stats import Stats
from data_tools.look.stats_plots import BINS, COLOURS, histogram, write_plots

HISTORY = (
    {"step": "generate", "read": 1000, "written": 950, "rejected": {"server error": 40, "no reply": 10}},
    {"step": "verify", "read": 950, "written": 600, "rejected": {}, "dropped": {"accuracy below 0.6": 350}},
    {"step": "judge", "read": 600, "written": 0, "rejected": {f"reason {i}": 120 - i for i in range(5)}},
    {"step": "empty", "read": 0, "written": 0, "rejected": {}, "dropped": None},
)


def full(**changes) -> Stats:
    numbers = {
        "records": 100,
        "responses": 90,
        "types": Counter({("image", "multiple choice"): 40, ("video", "multiple choice"): 35, ("image", "OCR"): 25}),
        "sources": Counter(STAR=60, Chart=40),
        "lengths": {"perception": Counter({100: 3, 200: 7}), "reasoning": Counter({400: 9, 9000: 1})},
        "history": HISTORY,
    }
    return Stats(**{**numbers, **changes})


@pytest.fixture
def figures(monkeypatch) -> dict[str, Figure]:
    """The figures that are written, by name of their file; they are written all the same."""
    seen = {}
    save = Figure.savefig

    def savefig(figure, path, *args, **kwargs):
        seen[path.stem] = figure
        save(figure, path, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen


def share_of(path, colour: str) -> float:
    """The share of a picture's pixels that have a colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.asarray(Image.open(path).convert("RGB")) == wanted).all(-1).mean()


def test_each_statistics_plot_is_drawn_in_its_colours(tmp_path):
    before = dict(matplotlib.rcParams)
    files = write_plots(full(), tmp_path / "new" / "png")
    assert [file.name for file in files] == ["types.png", "sources.png", "lengths.png", "keep_rate.png"]
    assert dict(matplotlib.rcParams) == before  # a style of ours stays ours
    for file, colours in zip(
        files, (("image", "video"), ("video",), ("reasoning",), ("video", "left out")), strict=True
    ):
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert min(image.size) > 150
        for colour in colours:
            assert share_of(file, COLOURS[colour]) > 0.005, (file, colour)


def test_plots_without_data_are_not_drawn_and_old_ones_removed(tmp_path):
    write_plots(full(), tmp_path)
    files = write_plots(full(lengths={}, history=()), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(files) == [tmp_path / "sources.png", tmp_path / "types.png"]
    assert write_plots(Stats(), tmp_path) == []


def test_plot_bars_match_counts(tmp_path, figures):
    write_plots(full(), tmp_path)
    image, video = figures["types"].axes[0].containers
    assert [bar.get_height() for bar in image] == [40, 0, 25, 0, 0]
    assert [(bar.get_y(), bar.get_height()) for bar in video] == [(40, 35), (0, 0), (25, 0), (0, 0), (0, 0)]
    assert [text.get_text() for text in figures["types"].axes[0].texts] == ["75", "0", "25", "0", "0"]
    (bars,) = figures["sources"].axes[0].containers
    assert [bar.get_width() for bar in bars] == [60, 40]
    read, kept = figures["keep_rate"].axes[0].containers
    assert [bar.get_width() for bar in read] == [1000, 950, 600, 0]
    assert [bar.get_width() for bar in kept] == [950, 600, 0, 0]


def test_keep_rate_plot_shows_rates_and_reject_reasons(tmp_path, figures):
    write_plots(full(), tmp_path)
    texts = [text.get_text() for text in figures["keep_rate"].axes[0].texts]
    assert texts == [
        "950 of 1,000: 95.0%",
        "rejected, server error: 40\nrejected, no reply: 10",
        "600 of 950: 63.2%",
        "dropped, accuracy below 0.6: 350",
        "0 of 600: 0.0%",
        "rejected, reason 0: 120\nrejected, reason 1: 119\nrejected, reason 2: 118\nother reasons: 233",
        "0 of 0: -",
        "",
    ]


def test_length_plot_shades_and_counts_reward_bands(tmp_path, figures):
    counts = Counter({127: 1, 128: 2, 320: 3, 321: 4})
    write_plots(full(lengths={"perception": counts, "reasoning": Counter({511: 1, 9000: 1})}), tmp_path)
    perception, reasoning = figures["lengths"].axes
    assert perception.get_title("left") == "perception: 50.0% within 128-320 tokens"
    assert reasoning.get_title("left") == "reasoning: 50.0% within 320-512 tokens"
    for axis, band in ((perception, (128, 320)), (reasoning, (320, 512))):
        shade = axis.patches[0]
        assert (shade.get_x(), shade.get_x() + shade.get_width()) == band


def test_histogram_counts_every_value():
    draw = random.Random(0)
    for longest in (1, 59, 60, 61, 500, 100_000):
        counts = Counter(draw.randrange(2 * longest) for _ in range(500))
        edges, heights = histogram(counts, longest)
        assert sum(heights) == 500
        assert len(heights) == len(edges) - 1 <= BINS
        assert edges[-1] > longest
        for i, height in enumerate(heights[:-1]):
            assert height == sum(n for length, n in counts.items() if edges[i] <= length < edges[i + 1])


def test_length_plot_accepts_segments_of_zero_tokens(tmp_path):
    lengths = {"perception": Counter({0: 5}), "reasoning": Counter({0: 5})}
    assert (tmp_path / "lengths.png") in write_plots(full(lengths=lengths), tmp_path)


@pytest.mark.parametrize(
    "name", ["", "$x^", "a$b$c", "line\nbreak\ttab", "n" * 500, "\\frac{", "<b>", "été", "_nolegend_"]
)
def test_plot_labels_accept_any_text(tmp_path, figures, name):
    history = [{"step": name, "read": 5, "written": 4, "rejected": {name: 1}}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_plots(full(sources=Counter({name: 7}), history=history), tmp_path)
    (label,) = figures["sources"].axes[0].get_yticklabels()
    assert label.get_text() == (stats_plots._short(name) or "(none)")
    assert "\n" not in label.get_text()
    with Image.open(tmp_path / "sources.png") as image:
        assert image.width < 1500


def test_source_plot_groups_small_sources(tmp_path, figures):
    write_plots(full(sources=Counter({f"s{i}": i for i in range(1, 31)})), tmp_path)
    (bars,) = figures["sources"].axes[0].containers
    assert [bar.get_width() for bar in bars] == [*range(30, 10, -1), sum(range(1, 11))]
    assert figures["sources"].axes[0].get_yticklabels()[-1].get_text() == "10 more"


def test_stats_command_lists_plots_it_wrote(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [release_record(i) for i in range(5)])
    out = tmp_path / "png"
    done = CliRunner().invoke(app, ["stats", str(file), "--png", str(out)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert [f"written: {out / name}.png" in done.output for name in ("types", "sources")] == [True, True]
    assert sorted(path.name for path in out.iterdir()) == ["sources.png", "types.png"]
    blocked = CliRunner().invoke(app, ["stats", str(file), "--png", str(file)], env={"COLUMNS": "200"})
    assert blocked.exit_code == 2
    assert str(file) in blocked.output
