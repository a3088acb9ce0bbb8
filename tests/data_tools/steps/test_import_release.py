# SPDX-License-Identifier: Apache-2.0
"""The release's gzip parts to parquet in one command, its counts compared with the published ones."""

import pyarrow.parquet as pq
import pytest
from release_files import release_record, stringified, write_release
from typer.testing import CliRunner

from data_tools.cli import app
from data_tools.steps.import_release import PUBLISHED_SFT, PUBLISHED_SUMS, differences, find_parts, import_release
from data_tools.steps.to_parquet import ExportSettings


def sft(count: int) -> list[dict]:
    return [release_record(i, path=f"./STAR/{i}.mp4") for i in range(count)]


def rl(count: int) -> list[dict]:
    return [stringified(record) for record in sft(count)]


@pytest.mark.parametrize("inside", [".", "data"])
def test_import_release_writes_parts_to_parquet_in_order(tmp_path, inside):
    folder = write_release(tmp_path / "release", sft(11), rl(13))
    reports = import_release(folder / inside, tmp_path / "out", ExportSettings(val_share=0))
    assert {kind: (report.read, report.written) for kind, report in reports.items()} == {
        "sft": (11, 11),
        "rl": (13, 13),
    }
    for kind, count in (("sft", 11), ("rl", 13)):
        table = pq.read_table(tmp_path / "out" / kind / "train.parquet")
        assert [extra["problem_id"] for extra in table["extra_info"].to_pylist()] == [str(i) for i in range(count)]


def test_import_release_works_with_sft_parts_only(tmp_path):
    folder = write_release(tmp_path / "release", sft(4), rl(6))
    for path in (folder / "data").glob("*_rl.*"):
        path.unlink()
    assert list(import_release(folder, tmp_path / "out")) == ["sft"]
    assert not (tmp_path / "out" / "rl").exists()


def test_missing_release_part_is_named(tmp_path):
    folder = write_release(tmp_path / "release", sft(4), rl(6))
    (folder / "data" / "VideoP2R-263k_rl.part2of3.json.gz").unlink()
    with pytest.raises(ValueError, match=r"data: of the rl file, part 2 of 3 is missing"):
        find_parts(folder)


def test_a_folder_without_the_release_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no VideoP2R-\*_sft\.part1of2\.json\.gz"):
        find_parts(tmp_path)


def test_published_counts_match_published_totals():
    # The table's own margins (arXiv 2511.11113).
    def total(index: int, value: str) -> int:
        return sum(count for cell, count in PUBLISHED_SFT.items() if cell[index] == value)

    assert [total(0, modality) for modality in ("image", "video")] == [72_775, 89_287]
    kinds = ("multiple choice", "numerical", "OCR", "free-form", "regression")
    assert [total(1, kind) for kind in kinds] == [134_001, 19_847, 4_014, 3_507, 693]
    assert sum(PUBLISHED_SFT.values()) == PUBLISHED_SUMS["sft"] == 162_062


def test_differences_from_published_counts_are_listed():
    assert differences("sft", PUBLISHED_SFT) == []
    assert differences("rl", {("video", "OCR"): 263_055}) == []
    assert differences("rl", {("video", "OCR"): 263_056}) == ["sum: 263,056 records, published 263,055 (+1)"]
    moved = {**PUBLISHED_SFT, ("video", "OCR"): 2, ("image", "OCR"): 4_012}
    assert differences("sft", moved) == [
        "image, OCR: 4,012 records, published 4,014 (-2)",
        "video, OCR: 2 records, published 0 (+2)",
    ]


def test_unusable_ground_truths_are_rejected_but_counted_as_published(tmp_path):
    # The table counts them, a run cannot use them.
    bad = {**rl(6)[5], "problem_type": "numerical", "solution": "<answer>several</answer>", "answer": "several"}
    folder = write_release(tmp_path / "release", sft(4), [*rl(5), bad])
    report = import_release(folder, tmp_path / "out", ExportSettings(max_reject_share=0.2))["rl"]
    assert (report.read, report.written, dict(report.reasons)) == (6, 5, {"unusable ground truth": 1})
    assert report.unusable == {("video", "numerical"): 1}
    assert differences("rl", report.counts, report.unusable) == ["sum: 6 records, published 263,055 (-263,049)"]
    done = CliRunner().invoke(app, ["import-release", str(folder), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1  # 1 of 6 is more than 1 %
    assert "sum: 6 records, published 263,055" in done.output
    assert "1 of these have a ground truth that no answer can match" in done.output


def test_import_release_command_compares_with_published_counts(tmp_path):
    folder = write_release(tmp_path / "release", sft(4), rl(6))
    done = CliRunner().invoke(app, ["import-release", str(folder), "--out", str(tmp_path / "out"), "--val-share", "0"])
    assert done.exit_code == 0, done.output
    assert "video, multiple choice: 4 records, published 86,910 (-86,906)" in done.output
    assert "sum: 6 records, published 263,055 (-263,049)" in done.output
    assert (tmp_path / "out" / "rl" / "train.parquet").is_file()


def test_a_media_root_that_is_no_folder_here_is_named_and_used(tmp_path):
    folder = write_release(tmp_path / "release", sft(4), rl(6))
    arguments = ["import-release", str(folder), "--out", str(tmp_path / "out"), "--val-share", "0"]
    done = CliRunner().invoke(app, [*arguments, "--media-root", str(tmp_path / "elsewhere")])
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'elsewhere'} is not a folder here" in done.output
    [row, *_] = pq.read_table(tmp_path / "out" / "rl" / "train.parquet")["videos"].to_pylist()
    assert row[0]["video"] == str(tmp_path / "elsewhere" / "STAR" / "0.mp4")


def test_import_release_command_fails_with_too_many_rejects(tmp_path):
    folder = write_release(tmp_path / "release", sft(4), [*rl(5), {**rl(6)[5], "options": "['A"}])
    arguments = ["import-release", str(folder), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "unreadable options: 1" in done.output
    assert "part3of3.json.gz:" in done.output
    assert CliRunner().invoke(app, [*arguments, "--max-reject-share", "0.2"]).exit_code == 0


def test_import_release_command_reports_missing_files(tmp_path):
    done = CliRunner().invoke(app, ["import-release", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "fetch the release's data/" in done.output
