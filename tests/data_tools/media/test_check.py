# SPDX-License-Identifier: Apache-2.0
"""The check of media reads ahead; what it rejects is tested with the exports, in `steps/test_to_parquet.py`."""

import time

from release_files import release_record

from data_tools.media import check
from data_tools.records.left_out import RejectLog
from verl_p2r.data.record import Record


def test_media_read_ahead_are_not_decoded_after_a_stop(tmp_path, monkeypatch):
    decoded = []

    def slow(medium, root):
        decoded.append(medium.path)
        time.sleep(0.1)

    monkeypatch.setattr(check, "fault_of", slow)
    records = [Record.parse(release_record(number, path=f"{number}.mp4")) for number in range(2 * check.AHEAD)]
    with RejectLog(tmp_path / "rejects.jsonl") as rejects:
        passed = check.MediaCheck(tmp_path, rejects, workers=1)(records)
        assert next(passed) is records[0]
        passed.close()
    assert len(decoded) < check.AHEAD / 2
