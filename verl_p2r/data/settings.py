# SPDX-License-Identifier: Apache-2.0
"""The settings of reading and screening rows: the YAML node `data.p2r`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_p2r.data.elements import KINDS, MediaSources, read_element
from verl_p2r.data.errors import RowError
from verl_p2r.data.messages import build_messages
from verl_p2r.media.deadline import RulesError
from verl_p2r.media.rules import EVALUATION, TRAINING, MediaSettings
from verl_p2r.settings import merge

FOREIGN_KEYS = ("media_cache", "process_aware")
"""Keys of the node that the caches and the SFT dataset read."""


@dataclass(frozen=True)
class MediaSplits:
    """How media are sampled and sized where the rows set nothing themselves.

    Args:
        train: for training.
        val: for validation.
    """

    train: MediaSettings = TRAINING
    val: MediaSettings = EVALUATION


@dataclass(frozen=True)
class DataSettings:
    """What a user can set about reading and screening rows.

    Args:
        media_root: folder that media paths are relative to and must not leave; None for the working directory, and for
            paths that lead anywhere.
        allow_outside_media_root: allow paths to leave `media_root`, by `..`, from `/`, or through symbolic links.
        allow_urls: allow media to be http(s) URLs, which the screening and every decoding then fetch.
        prompt_template: template for records, which have no prompt: one of the package's, or the path of a text file.
        max_reject_share: the largest share of rows, in [0, 1], that a run may reject and go on.
        rejects_dir: folder for the lists of rejected rows; None to write none.
        screen_cache: folder of stored screenings, for starts with the same files and settings. Such a start probes only
            the rejected media; a medium that was changed since is found when it is decoded. None to screen at every
            start.
        media: defaults of media elements.

    >>> DataSettings.from_mapping({"media": {"train": {"max_frames": 8}}}).media.train.max_frames
    8
    """

    media_root: str | None = None
    allow_outside_media_root: bool = False
    allow_urls: bool = False
    prompt_template: str = "process_aware"
    max_reject_share: float = 0.01
    rejects_dir: str | None = None
    screen_cache: str | None = None
    media: MediaSplits = MediaSplits()

    def __post_init__(self) -> None:
        if not 0 <= self.max_reject_share <= 1:
            raise ValueError(
                f"max_reject_share is {self.max_reject_share}: give a share between 0 and 1, for example 0.01"
            )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], where: str = "data.p2r") -> "DataSettings":
        """Read the settings from a mapping; missing keys keep their defaults.

        Args:
            mapping: the configuration node, plain or OmegaConf; `FOREIGN_KEYS` are ignored.
            where: dotted path of the node, for error messages.

        Raises:
            ValueError: an unknown key, a value of the wrong type or out of range; the message names the dotted path.
        """
        return merge(cls(), {key: value for key, value in mapping.items() if key not in FOREIGN_KEYS}, where)

    @property
    def cache_folder(self) -> Path | None:
        """The folder of stored screenings, or None."""
        return Path(self.screen_cache).expanduser() if self.screen_cache else None

    def listing(self, name: str) -> Path | None:
        """Return the file that lists the rejected rows of a data set, or None.

        Args:
            name: name of the data set, such as `train` or `val`.
        """
        return Path(self.rejects_dir).expanduser() / f"rejected_{name}.jsonl" if self.rejects_dir else None

    @property
    def sources(self) -> MediaSources:
        """Where media may come from."""
        return MediaSources(self.media_root, self.allow_outside_media_root, self.allow_urls)

    def element(
        self, medium: Any, media: MediaSettings | None, kind: str | None = None, field: str | None = None
    ) -> dict[str, Any]:
        """Read a medium in the form it is decoded in: with its path joined to `media_root` and defaults filled in.

        Args:
            medium: the medium in any shape that `elements.read_element` reads.
            media: defaults to fill in; None to fill in nothing.
            kind: `image` or `video`; by default the one that the mapping `medium` names.
            field: field of the row, for errors.

        Raises:
            RowError: it cannot be read.

        >>> DataSettings(media_root="/data").element({"type": "video", "video": "./a.mp4"}, None)
        {'type': 'video', 'video': '/data/a.mp4'}
        """
        if kind is None:
            kind = next((kind for kind in KINDS if isinstance(medium, Mapping) and kind in medium), "video")
        field = field or f"{kind}s"
        element = read_element(medium, kind, field, self.sources)
        try:
            return media.fill(element) if media is not None else element
        except RulesError as error:
            raise RowError(field, "sampling rules", f"field {field}: {error}") from error

    def messages(
        self, row: Mapping[str, Any], key: str, fields: Mapping[str, str], media: MediaSettings | None
    ) -> list[dict]:
        """Build the messages of a row with its media in place; both datasets make theirs here.

        Args:
            row: row with messages and columns of media.
            key: column of the messages.
            fields: for each kind of medium the column of its media.
            media: defaults of media elements; None to fill in nothing.

        Raises:
            RowError: the messages or the media cannot be read.
        """
        return build_messages(row, key, fields, lambda medium, kind: self.element(medium, media, kind, fields[kind]))
