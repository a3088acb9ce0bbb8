# SPDX-License-Identifier: Apache-2.0
"""The comparison of quickstart runs over seeds."""

import io
import json
import math
import re
import sys
import warnings
from pathlib import Path

import pytest
from paths import QUICKSTART, ROOT
from rich.console import Console

sys.path.insert(0, str(QUICKSTART))

import compare
import compare_runs
import run_data
from quickstart_runs import PNG, invoke, metrics_rows, write_rows


def fake_comparison(folder: Path) -> Path:
    """PA-GRPO and GRPO-sum with three seeds, no separation with a run that stopped early, GRPO with one just begun."""
    final = {"pa_grpo": (0.8, 0.9, 0.7), "grpo_reasoning": (0.6, 0.5), "grpo_sum": (0.7, 0.7, 0.7)}
    for name, accuracies in (final | {"no_separation": (0.75, 0.65)}).items():
        for seed, accuracy in enumerate(accuracies, start=1):
            write_rows(folder / name / f"seed{seed}" / "metrics.jsonl", metrics_rows(6, 0.3, accuracy))
    write_rows(folder / "no_separation" / "seed3" / "metrics.jsonl", metrics_rows(6, 0.3, 0.99)[:4])
    (folder / "grpo_reasoning" / "seed3").mkdir()
    (folder / "grpo_reasoning" / "seed3" / "metrics.jsonl").touch()
    return folder


def test_comparison_averages_seeds_and_names_missing_runs(tmp_path):
    folder = fake_comparison(tmp_path)
    result = invoke(compare.main, folder)
    assert result.exit_code == 0, result.output
    summary = json.loads((folder / "summary.json").read_text())
    algorithms = summary["algorithms"]
    # Each data source weighs the same, and the second one lies 0.02 above the first.
    assert algorithms["pa_grpo"]["after"]["perception"]["mean"] == pytest.approx(0.81)
    assert algorithms["pa_grpo"]["after"]["perception"]["sd"] == pytest.approx(0.1)
    assert algorithms["pa_grpo"]["before"]["reasoning"]["mean"] == pytest.approx(0.31)
    assert algorithms["grpo_sum"]["after"]["reasoning"]["sd"] == pytest.approx(0.0)
    assert algorithms["grpo_reasoning"]["after"]["reasoning"]["by_seed"] == pytest.approx(
        {"seed1": 0.61, "seed2": 0.51}
    )
    # The run that stopped at step 3 would have brought in its accuracy before RL.
    assert algorithms["no_separation"]["after"]["reasoning"]["mean"] == pytest.approx(0.71)
    assert [entry["seeds"] for entry in algorithms.values()] == [3, 2, 3, 2]
    assert summary["left_out"] == [
        "grpo_reasoning/seed3: no metrics",
        "no_separation/seed3: last validation at step 0, not 6",
    ]
    # Collapse is 0.1 + 0.5 · step / 6, of which the mean over steps 1 to 6 is 0.1 + 0.5 · 3.5 / 6.
    collapse = algorithms["pa_grpo"]["collapse"]["perception"]
    assert collapse["mean"] == pytest.approx(0.1 + 0.5 * 3.5 / 6)
    assert "81.0 ± 10.0" in result.output
    assert "grpo_reasoning/seed3" in result.output
    for name in ("accuracy.png", "collapse.png"):
        assert (folder / name).read_bytes().startswith(PNG)


def test_one_seed_has_no_spread_and_its_differences_no_interval(tmp_path):
    for name, accuracy in (("pa_grpo", 0.8), ("grpo_sum", 0.7)):
        write_rows(tmp_path / name / "seed1" / "metrics.jsonl", metrics_rows(4, 0.3, accuracy))
    runs, left_out = compare_runs.read_runs(tmp_path)
    summary = compare_runs.summarise(compare_runs.records_of(runs), left_out)
    assert left_out == []
    assert list(summary["algorithms"]) == ["pa_grpo", "grpo_sum"]
    assert summary["algorithms"]["pa_grpo"]["after"]["reasoning"]["sd"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare.draw(runs, tmp_path)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(compare.table(summary), compare.difference_table(summary))
    text = console.export_text()
    assert re.search(r"PA-GRPO\s.*1\s.*81\.0", text)
    assert re.search(r"GRPO sum\s.*1\s.*-10\.0\s.*-10\.0\s", text)


def test_differences_are_paired_by_seed_with_intervals_of_students_t(tmp_path):
    folder = fake_comparison(tmp_path)
    write_rows(folder / "cross_0.5" / "seed2" / "metrics.jsonl", metrics_rows(6, 0.3, 0.95))
    write_rows(folder / "cross_0.5" / "seed3" / "metrics.jsonl", metrics_rows(6, 0.3, 0.79))
    result = invoke(compare.main, folder)
    assert result.exit_code == 0, result.output
    algorithms = json.loads((folder / "summary.json").read_text())["algorithms"]
    assert "difference" not in algorithms["pa_grpo"]
    # The sum's 0.7, 0.7, 0.7 less PA-GRPO's 0.8, 0.9, 0.7: mean -0.1, sd 0.1, ± 4.303 · 0.1 / √3.
    half = 4.303 * 0.1 / 3**0.5
    expected = {"n": 3, "mean": -0.1, "low": -0.1 - half, "high": -0.1 + half}
    assert algorithms["grpo_sum"]["difference"]["reasoning"] == pytest.approx(expected)
    # Seeds 2 and 3 only: 0.05 and 0.09, ± 12.706 · 0.02, of which the sd is 0.04 / √2.
    expected = {"n": 2, "mean": 0.07, "low": 0.07 - 12.706 * 0.02, "high": 0.07 + 12.706 * 0.02}
    assert algorithms["cross_0.5"]["difference"]["perception"] == pytest.approx(expected)
    assert algorithms["cross_0.5"]["label"] == "λ = 0.5"
    assert "-10.0 [-34.8, +14.8]" in result.output


def test_the_records_of_the_runs_are_enough_for_the_table(tmp_path):
    folder = fake_comparison(tmp_path)
    assert invoke(compare.main, folder).exit_code == 0
    records = (folder / "runs.jsonl").read_text().splitlines()
    assert len(records) == 10
    assert max(map(len, records)) < 400
    copied = tmp_path / "committed.jsonl"
    copied.write_text("\n".join(records))
    result = invoke(compare.main, copied)
    assert result.exit_code == 0, result.output
    assert "81.0 ± 10.0" in result.output
    assert compare_runs.summarise(compare_runs.read_records(copied), []) == {
        **json.loads((folder / "summary.json").read_text()),
        "left_out": [],
    }


def test_markdown_holds_the_same_cells(tmp_path):
    result = invoke(compare.main, fake_comparison(tmp_path), "--markdown")
    assert result.exit_code == 0, result.output
    assert "| PA-GRPO | 3 | 81.0 ± 10.0 | 81.0 ± 10.0 | 39.2 ± 0.0, 39.2 ± 0.0 |" in result.output.splitlines()
    assert "| GRPO sum | 3 | −10.0 [−34.8, +14.8] | −10.0 [−34.8, +14.8] |" in result.output.splitlines()
    assert re.search(r"^Before training: .* Every data source weighs the same\.$", result.output, re.MULTILINE)


@pytest.mark.parametrize("file", sorted((ROOT / "docs/results/comparison").glob("*.jsonl")), ids=lambda file: file.stem)
def test_the_page_shows_the_tables_of_the_committed_runs(file):
    page = (ROOT / "docs/results/comparison.md").read_text(encoding="utf-8")
    summary = compare_runs.summarise(compare_runs.read_records(file), [])
    for made in (compare.table(summary), compare.difference_table(summary)):
        assert compare.markdown(made) in page


def test_quantiles_are_students():
    # Density of t with ν degrees of freedom, integrated from the quantile: 2.5 % must lie beyond it.
    for freedom, quantile in ((2, 4.303), (5, 2.571), (14, 2.145), (30, 2.042)):
        assert compare_runs._STUDENT[freedom - 1] == quantile
        factor = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
        width = quantile / 20_000
        inside = sum(factor * (1 + ((k + 0.5) * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for k in range(20_000))
        assert inside * width == pytest.approx(0.475, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, r"run examples/quickstart/compare\.sh first"),
        ("ppo", r"ppo: unknown algorithm; known are pa_grpo, .* and cross_<λ>"),
    ],
)
def test_comparison_without_runs_or_with_unknown_ones_fails(tmp_path, name, message):
    if name:
        write_rows(tmp_path / name / "seed1" / "metrics.jsonl", metrics_rows(2))
    with pytest.raises(run_data.RunError, match=message):
        compare_runs.read_runs(tmp_path)


def test_comparison_without_validation_fails(tmp_path):
    write_rows(tmp_path / "pa_grpo" / "seed1" / "metrics.jsonl", [{"step": 1, "data": {}}])
    with pytest.raises(run_data.RunError, match="no run has logged a validation accuracy"):
        compare_runs.read_runs(tmp_path)


def test_band_uses_only_steps_common_to_all_seeds():
    assert compare._common([{1: 0.1, 2: 0.2, 3: 0.3}, {2: 0.4, 3: 0.6}]) == {2: [0.2, 0.4], 3: [0.3, 0.6]}
    assert compare._common([]) == {}


def test_held_out_points_are_means_over_the_seeds_that_have_them():
    assert compare._means([{0: 0.1, 12: 0.5}, {12: 0.7}]) == ([0, 12], [0.1, pytest.approx(0.6)])
    assert compare._means([]) == ([], [])
