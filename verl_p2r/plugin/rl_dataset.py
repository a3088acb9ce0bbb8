# SPDX-License-Identifier: Apache-2.0
"""verl's RL dataset with its rows checked before the run; named by `data.custom_cls`.

Without the check a bad row fails inside an agent loop in the middle of training, where verl logs the error and goes on
without the prompt; or verl's filter of over-long prompts drops it without a word.
"""

import asyncio
import json
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import cachetools
import datasets
import pandas as pd
from rich.progress import track
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_p2r.media import MediaError, check_image, check_video, install_reader
from verl_p2r.rows import Row

install_reader()

SHOWN = 5  # how many bad rows an error lists
PROMPTS_KEPT = 32  # how many prompts' media a worker holds; the rollouts of a prompt share one worker

_media: cachetools.LRUCache[tuple, asyncio.Task] = cachetools.LRUCache(PROMPTS_KEPT)


class P2RDataset(RLHFDataset):
    """Rows of verl's parquet with, beside verl's columns, `problem_type` (or `extra_info.problem_type`).

    Raises:
        ValueError: listing the first bad rows by file, row and field: unknown problem type, no ground truth, a row
            without media, placeholders and media that do not match in number, a missing or undecodable video or image.
    """

    def maybe_filter_out_long_prompts(self, dataframe: datasets.Dataset) -> datasets.Dataset:
        self._check(dataframe)
        return super().maybe_filter_out_long_prompts(dataframe)

    @classmethod
    async def process_multi_modal_info(cls, messages: list[dict], image_patch_size, config):
        """Decode a prompt's media once for all its rollouts, which verl would decode once for each."""
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        media = [part for part in parts if part.get("type") in ("image", "video", "audio")]
        if not all(isinstance(value, str | int | float) for part in media for value in part.values()):
            return await super().process_multi_modal_info(messages, image_patch_size, config)  # pixels have no name
        key = (asyncio.get_running_loop(), repr((image_patch_size, media)))
        if key not in _media:
            _media[key] = asyncio.ensure_future(super().process_multi_modal_info(messages, image_patch_size, config))
            _media[key].add_done_callback(lambda task: (task.cancelled() or task.exception()) and _media.pop(key, None))
        # Lists of their own: an agent loop with tools appends to them.
        return tuple(kind and list(kind) for kind in await asyncio.shield(_media[key]))

    def _build_messages(self, example: dict, key: str) -> list[dict]:
        media = {field: _set_fields(example.get(field)) for field in (self.image_key, self.video_key)}
        return super()._build_messages({**example, **media}, key)

    def require_facts(self) -> None:
        """Check that every row lists the facts that the judge `facts` looks for.

        Raises:
            ValueError: naming the first row without.
        """
        for i, columns in enumerate(self.dataframe):
            row = Row.from_columns({**columns, "extra_info": {"index": i, **(columns.get("extra_info") or {})}})
            if row.facts is None:
                raise ValueError(
                    f"{', '.join(map(str, self.original_data_files))}: {row.name}: field extra_info.facts is missing, "
                    "and the judge 'facts' needs it: list the facts, or choose another algorithm.p2r.judge.name"
                )

    def _check(self, dataframe: datasets.Dataset) -> None:
        place = self._places(dataframe)
        problems: list[str] = []
        media: dict[str, tuple[str, Callable, dict]] = {}  # each distinct one once, with the first row that names it
        for i, columns in enumerate(dataframe):
            where = place(i)
            problems += self._problems_of(columns, where)
            for field, check, element in self._media_files(columns):
                key = json.dumps(element, sort_keys=True, default=str)
                media.setdefault(key, (f"{where}: {field}", check, element))
        problems += _unreadable(list(media.values()))
        if problems:
            more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise ValueError(f"{len(problems)} problem(s) in the data:\n  " + "\n  ".join(problems[:SHOWN]) + more)

    def _places(self, dataframe: datasets.Dataset) -> Callable[[int], str]:
        """What names row i in messages: its file, and its row there; `data.max_samples` may have drawn it."""
        kinds = ["parquet" if file.endswith(".parquet") else "json" for file in self.data_files]
        ends = list(
            accumulate(
                len(datasets.load_dataset(kind, data_files=file)["train"])
                for kind, file in zip(kinds, self.data_files, strict=True)
            )
        )
        drawn = dataframe._indices  # None when no row was left out

        def place(i: int) -> str:
            origin = i if drawn is None else drawn.column(0)[i].as_py()
            file = bisect_right(ends, origin)
            return f"{self.original_data_files[file]} row {origin - (ends[file - 1] if file else 0)}"

        return place

    def _problems_of(self, columns: dict[str, Any], where: str) -> list[str]:
        problems = []
        try:
            Row.from_columns(columns, name=where)
        except ValueError as error:
            problems.append(str(error))
        text = "".join(m["content"] for m in columns[self.prompt_key] if isinstance(m["content"], str))
        media = {"<image>": columns.get(self.image_key), "<video>": columns.get(self.video_key)}
        counts = {tag: len(given or []) for tag, given in media.items()}
        if not any(counts.values()):
            problems.append(
                f"{where}: fields {self.image_key} and {self.video_key} are empty: a row needs the media its question "
                "is about; drop text-only rows"
            )
        for tag, count in counts.items():
            if (placeholders := len(re.findall(tag, text))) != count:
                problems.append(
                    f"{where}: field {self.prompt_key} holds {placeholders} {tag} but the row has {count} of them: "
                    "write one placeholder per medium"
                )
        return problems

    def _media_files(self, columns: dict[str, Any]) -> Iterator[tuple[str, Callable, dict]]:
        """The media of a row that are local files: field, what checks it, and the element of the message."""
        for key, kind, check in ((self.video_key, "video", check_video), (self.image_key, "image", check_image)):
            for medium in _set_fields(columns.get(key)):
                element = medium if isinstance(medium, dict) else {kind: medium}
                source = element.get(kind)
                if isinstance(source, str) and "://" not in source.removeprefix("file://"):
                    yield f"field {key}", check, element


def _set_fields(media: Any) -> list:
    """A row's media without fields that are None: parquet gives each medium the fields of all."""
    media = [] if media is None or media is pd.NA else list(media)
    return [{k: v for k, v in m.items() if v is not None} if isinstance(m, dict) else m for m in media]


def _unreadable(media: list[tuple[str, Callable, dict]]) -> list[str]:
    """Open every medium once: what cannot be read is a line here instead of a lost prompt in training."""

    def reason(entry: tuple[str, Callable, dict]) -> str | None:
        where, check, element = entry
        try:
            check(element)
        except MediaError as error:
            return f"{where}: {error}"
        return None

    with ThreadPoolExecutor(max_workers=min(32, 4 * (os.cpu_count() or 1))) as pool:
        reasons = track(pool.map(reason, media), description="Checking media", total=len(media), transient=True)
        return [r for r in reasons if r]
