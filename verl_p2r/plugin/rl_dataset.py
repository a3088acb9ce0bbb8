# SPDX-License-Identifier: Apache-2.0
"""verl's RL dataset with its rows checked before the run; named by `data.custom_cls`.

Without the check a bad row fails inside an agent loop in the middle of training, where verl logs the error and goes on
without the prompt.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.progress import track
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_p2r.media import MediaError, check_video, install_reader, local_path
from verl_p2r.rows import Row

install_reader()

SHOWN = 5  # how many bad rows an error lists


class P2RDataset(RLHFDataset):
    """Rows of verl's parquet with, beside verl's columns, `problem_type` (or `extra_info.problem_type`).

    Raises:
        ValueError: listing the first bad rows by file, row and field: unknown problem type, no ground truth, a row
            without media, placeholders and media that do not match in number, a missing or undecodable video.
    """

    def _read_files_and_tokenize(self):
        super()._read_files_and_tokenize()
        problems = [problem for i in range(len(self.dataframe)) for problem in self._problems_of(i)]
        problems += self._unreadable_videos()
        if problems:
            more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise ValueError(
                f"{len(problems)} problem(s) in {', '.join(map(str, self.original_data_files))}:\n  "
                + "\n  ".join(problems[:SHOWN])
                + more
            )

    def require_facts(self) -> None:
        """Check that every row lists the facts that the judge `facts` looks for.

        Raises:
            ValueError: naming the first row without.
        """
        for i in range(len(self.dataframe)):
            row = Row.from_columns(self._checked_columns(i))
            if row.facts is None:
                raise ValueError(
                    f"{', '.join(map(str, self.original_data_files))}: {row.name}: field extra_info.facts is missing, "
                    "and the judge 'facts' needs it: list the facts, or choose another algorithm.p2r.judge.name"
                )

    def _checked_columns(self, i: int) -> dict[str, Any]:
        columns = dict(self.dataframe[i])
        extra = dict(columns.get("extra_info") or {})
        extra.setdefault("index", i)
        return {**columns, "extra_info": extra}

    def _problems_of(self, i: int) -> list[str]:
        columns = self._checked_columns(i)
        problems = []
        try:
            Row.from_columns(columns)
        except ValueError as error:
            problems.append(str(error))
        text = "".join(m["content"] for m in columns[self.prompt_key] if isinstance(m["content"], str))
        media = {"<image>": columns.get(self.image_key), "<video>": columns.get(self.video_key)}
        counts = {tag: 0 if given is None else len(given) for tag, given in media.items()}
        if not any(counts.values()):
            problems.append(
                f"row {i}: fields {self.image_key} and {self.video_key} are empty: a row needs the media its question "
                "is about; drop text-only rows"
            )
        for tag, count in counts.items():
            if (placeholders := len(re.findall(tag, text))) != count:
                problems.append(
                    f"row {i}: field {self.prompt_key} holds {placeholders} {tag} but the row has {count} of them: "
                    "write one placeholder per medium"
                )
        return problems

    def _unreadable_videos(self) -> list[str]:
        """Open every video once: an unreadable file is a line here instead of a lost prompt in training."""
        first_row: dict[str, int] = {}
        for i in range(len(self.dataframe)):
            for video in self.dataframe[i].get(self.video_key) or []:
                source = video.get("video") if isinstance(video, dict) else video
                if isinstance(source, str) and "://" not in source.removeprefix("file://"):
                    first_row.setdefault(local_path(source), i)
        if not first_row:
            return []
        with ThreadPoolExecutor(max_workers=min(32, 4 * (os.cpu_count() or 1))) as pool:
            results = pool.map(_reason_unreadable, first_row)
            reasons = list(track(results, description="Checking videos", total=len(first_row), transient=True))
        return [
            f"row {i}: field {self.video_key}: {reason}"
            for i, reason in zip(first_row.values(), reasons, strict=True)
            if reason
        ]


def _reason_unreadable(path: str) -> str | None:
    try:
        check_video(path)
    except MediaError as error:
        return str(error)
    return None
