# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of records and rows: hostile values become named rejects, and every good neighbour stays."""

import json

import hostile_records
import pytest
from omegaconf import OmegaConf

from data_tools.records.files import Records
from data_tools.records.left_out import RejectLog
from data_tools.steps.to_parquet import ExportSettings, to_parquet
from data_tools.steps.verify import verify
from verl_p2r.plugin.datasets.rl_dataset import P2RDataset
from verl_p2r.plugin.datasets.sft_dataset import P2RSFTDataset

CASES = 1000
pytestmark = pytest.mark.slow


@pytest.fixture
def media(make_clip):
    return make_clip(8, 4)


def write(path, lines) -> str:
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    return str(path)


def load(cls, file, processor, tmp_path, **p2r):
    p2r = {"max_reject_share": 1, "rejects_dir": str(tmp_path / "rejects"), **p2r}
    config = {"cache_dir": str(tmp_path), "filter_overlong_prompts": False, "return_raw_chat": True, "p2r": p2r}
    config |= {"max_prompt_length": 4096, "max_length": 4096, "pad_mode": "no_padding", "train_files": file}
    return cls([file], processor.tokenizer, OmegaConf.create(config), processor=processor)


@pytest.mark.parametrize("seed", [0, 1])
def test_hostile_records_go_through_the_data_tools(tmp_path, media, seed):
    file = tmp_path / "records.jsonl"
    write(file, hostile_records.lines(seed, CASES, media.name))
    with RejectLog(tmp_path / "rejects.jsonl") as rejects:
        records = list(Records([file], rejects))
    good = [f"good {number}" for number in range(CASES + 1)]
    assert [record.problem_id for record in records if record.problem_id.startswith("good ")] == good
    assert len(records) + rejects.total == 2 * CASES + 1
    assert rejects.total > CASES / 3
    for record in records:
        json.loads(json.dumps(record.to_json(), ensure_ascii=False).encode())
    for line in (tmp_path / "rejects.jsonl").read_text().splitlines():
        reject = json.loads(line)
        assert reject["reason"]
        assert reject["message"]

    verified = verify([file], tmp_path / "verified", max_reject_share=1)
    assert verified.written > CASES
    for kind in ("sft", "rl"):
        settings = ExportSettings(max_reject_share=1, media_root=str(media.parent), check_files=True)
        report = to_parquet([file], tmp_path / kind, kind, settings)
        assert report.read == 2 * CASES + 1 == report.written + report.rejected
        assert report.written > CASES


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("cls", [P2RDataset, P2RSFTDataset])
def test_hostile_records_are_rejected_by_screening(tmp_path, media, processor, seed, cls):
    file = write(tmp_path / "records.jsonl", hostile_records.lines(seed, CASES, media.name))
    dataset = load(cls, file, processor, tmp_path, media_root=str(media.parent))
    check(dataset, tmp_path, 2 * CASES + 1, range(0, 2 * CASES + 1, 2))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("cls", [P2RDataset, P2RSFTDataset])
def test_hostile_rows_are_rejected_by_screening(tmp_path, media, processor, seed, cls):
    file = write(tmp_path / "rows.jsonl", hostile_records.row_lines(seed, CASES, str(media)))
    dataset = load(cls, file, processor, tmp_path)
    check(dataset, tmp_path, 3 * CASES, [row for row in range(3 * CASES) if row % 3 != 1])


def check(dataset, tmp_path, total, good) -> None:
    (listing,) = (tmp_path / "rejects").glob("rejected_*.jsonl")
    rejects = [json.loads(line) for line in listing.read_text().splitlines()]
    assert len(dataset) + len(rejects) == total
    assert {reject["row"] for reject in rejects}.isdisjoint(good)
    assert all(reject["reason"] and reject["message"] for reject in rejects)
    assert len(rejects) > (total - len(list(good))) / 4
    for item in range(0, len(dataset), 97):  # those that stay can be used
        dataset[item]
