# SPDX-License-Identifier: Apache-2.0
"""A record's medium as parts of a chat message."""

from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.media.check import medium_error
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Record
from verl_p2r.media.message_parts import MediaParts, VideoAs, element_parts
from verl_p2r.media.rules import MediaSettings

if TYPE_CHECKING:
    from verl_p2r.media.frame_cache import FrameCache


def media_parts(
    record: Record,
    root: Path,
    settings: MediaSettings,
    *,
    video_as: VideoAs = "video",
    patch_size: int = 14,
    cache: "FrameCache | None" = None,
) -> MediaParts:
    """Read a record's medium as parts of a message.

    Args:
        record: the record.
        root: folder that its path is relative to.
        settings: limits on frames and their size, where the record's own `media` sets none.
        video_as: see `element_parts`.
        patch_size: see `element_parts`.
        cache: see `element_parts`.

    Raises:
        RowError: the file is missing or cannot be read.
    """
    try:
        element = settings.fill(record.medium.element(root))
        return element_parts(element, video_as=video_as, patch_size=patch_size, cache=cache)
    except RowError:
        raise
    except Exception as error:  # decoders may raise anything on damaged files; report it as this file's error
        raise medium_error(root / record.path, error) from error
