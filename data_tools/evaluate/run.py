# SPDX-License-Identifier: Apache-2.0
"""Step 2 of an evaluation: a model behind a server answers every prepared item.

It uses `steps.asking`: replies are stored as they come, a killed run continues where it was, a changed setting asks all
items again, and when the server goes down the run ends without losing a reply.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.evaluate.asker import SHAPE, ChatAsker, Request
from data_tools.media.parts import media_parts
from data_tools.steps.asking import asking_step
from data_tools.steps.generate_settings import GenerateSettings, prompt_of
from data_tools.steps.run import OnRecord, Outcome, StepReport
from verl_p2r.cpus import available_cpus
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Medium, Record
from verl_p2r.media.message_parts import MediaParts
from verl_p2r.media.rules import EVALUATION

STEP = "evaluate"

DEFAULTS = GenerateSettings(temperature=0.01, max_tokens=2048, extra_body={"top_p": 0.001}, media=EVALUATION)
"""The paper's inference: 32 frames of 256 · 28² pixels, temperature 0.01, top_p 0.001. `max_tokens` is ours."""

AHEAD = 2.0  # items in progress for each call that may be in flight: media are read while others wait for replies
KEPT_MEDIA = 8  # encoded videos in memory; items of one video come one after the other


class SharedMedia:
    """Reads media as parts of a request, each once for all items about it that come close together.

    Args:
        settings: limits on frames and pixels, and how they are sent.
        root: folder that the records' paths are relative to.
        frame_cache: folder for decoded frames, which other runs share; None to keep none.
        frame_cache_bytes: the most bytes in that folder.
    """

    def __init__(
        self, settings: GenerateSettings, root: Path, frame_cache: Path | None = None, frame_cache_bytes: int = 50 << 30
    ) -> None:
        self._settings, self._root = settings, root
        self._cache: Any = None
        if frame_cache is not None:
            from verl_p2r.media.frame_cache import FrameCache  # imports torch, 0.2 GB

            self._cache = FrameCache(frame_cache, frame_cache_bytes)
        self._readers = ThreadPoolExecutor(settings.readers or available_cpus(), thread_name_prefix="media")
        self._parts: OrderedDict[Medium, asyncio.Future[MediaParts]] = OrderedDict()

    async def parts(self, record: Record) -> MediaParts:
        """Return the medium of a record.

        Raises:
            RowError: the file is missing or cannot be read; the next item does not try it again.
        """
        medium = record.medium
        future = self._parts.get(medium)
        if future is None:
            future = asyncio.get_running_loop().run_in_executor(self._readers, self._read, record)
            self._parts[medium] = future
            while len(self._parts) > KEPT_MEDIA:
                self._parts.popitem(last=False)
        self._parts.move_to_end(medium)
        return await asyncio.shield(future)

    def close(self) -> None:
        """Stop reading."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _read(self, record: Record) -> MediaParts:
        own = self._settings
        return media_parts(
            record, self._root, own.media, video_as=own.video_as, patch_size=own.patch_size, cache=self._cache
        )


def evaluate(
    files: Sequence[Path],
    folder: Path,
    settings: GenerateSettings,
    root: Path,
    *,
    frame_cache: Path | None = None,
    max_reject_share: float = 0.01,
    on_record: OnRecord = lambda kept: None,
) -> StepReport:
    """Ask a model about prepared items. The reply becomes the `output` of the record.

    Args:
        files: files of prepared benchmarks, see `records.files.files_of`.
        folder: output folder; replies are stored next to it, see `steps.replies`.
        settings: `DEFAULTS`, with a model and its servers.
        root: media root that the benchmarks were prepared with.
        frame_cache: folder for decoded frames; None to keep none.
        max_reject_share: the largest share of items, in [0, 1], that may have no reply; above it the run has failed.
            Items without a reply score 0 in any case.
        on_record: called once an item is settled.

    Raises:
        NobodyReplies: the server is down or refuses everything; replies so far are stored.
        ValueError: a setting or the folder cannot be used.
    """
    template = PromptTemplate.load(settings.prompt_template)
    media = SharedMedia(settings, root, frame_cache)

    async def request(record: Record) -> Request:
        shown = await media.parts(record)
        return Request([*shown.parts, {"type": "text", "text": prompt_of(record, template)}], shown.body)

    def apply(record: Record, reply: dict[str, Any]) -> Outcome:
        own = {name: reply[name] for name in ("finish_reason", "completion_tokens")}
        fresh = replace(record, output=reply["output"], observation=None, process=None, reward=None, select=None)
        return replace(fresh, extra={**record.extra, **own, "generated_by": settings.model}), None

    try:
        return asking_step(
            STEP,
            files,
            folder,
            ChatAsker(settings, settings.fingerprint(template), request, "the evaluated model", AHEAD),
            apply,
            SHAPE,
            max_reject_share=max_reject_share,
            root=root,
            on_record=on_record,
        )
    finally:
        media.close()
