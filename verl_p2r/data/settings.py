# SPDX-License-Identifier: Apache-2.0
"""The settings of the data: the part of the YAML node `data.p2r` that says how rows are read and screened."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_p2r.data.elements import KINDS, MediaSources, read_element
from verl_p2r.data.errors import RowError
from verl_p2r.media.plan import EVALUATION, TRAINING, MediaSettings
from verl_p2r.media.source import RulesError
from verl_p2r.settings import merge

OF_OTHERS = ("media_cache", "process_aware")  # keys of the node that the caches and the SFT dataset read


@dataclass(frozen=True)
class MediaSplits:
    """How media are sampled and sized where the rows do not say it themselves: in training, and in validation."""

    train: MediaSettings = TRAINING
    val: MediaSettings = EVALUATION


@dataclass(frozen=True)
class DataSettings:
    """What a user can set about the reading and screening of rows.

    Args:
        media_root: the folder that relative media paths start from, and that no path may leave; None for the working
            directory, and for paths that lead anywhere.
        allow_outside_media_root: let paths leave `media_root`, by `..`, from `/`, or through symbolic links.
        allow_urls: let media be http(s) URLs. The screening and every decoding then fetch them.
        prompt_template: of records that come without a prompt: one of the package's, or the path of a text file.
        max_reject_share: the largest share of rows, in [0, 1], that a run goes on without.
        rejects_dir: where the rejected rows are listed; None to list them nowhere.
        screen_cache: the folder where outcomes of screenings are kept, for starts with the same files and settings.
            Such a start looks at no medium but the rejected ones; one that was changed since is found when it is
            decoded. None to screen at every start.
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
        """Read the settings from a (possibly partial) mapping; what it leaves out keeps its default.

        Args:
            mapping: the configuration node, plain or OmegaConf; `OF_OTHERS` are not looked at.
            where: the node's dotted path, for error messages.

        Raises:
            ValueError: an unknown key, a value of the wrong type or out of range; the message names the dotted path.
        """
        return merge(cls(), {key: value for key, value in mapping.items() if key not in OF_OTHERS}, where)

    @property
    def cache_folder(self) -> Path | None:
        """Where outcomes are kept."""
        return Path(self.screen_cache).expanduser() if self.screen_cache else None

    def listing(self, name: str) -> Path | None:
        """The file that lists the rejected rows of one data set, `train` or `val`."""
        return Path(self.rejects_dir).expanduser() / f"rejected_{name}.jsonl" if self.rejects_dir else None

    @property
    def sources(self) -> MediaSources:
        """Where media may come from."""
        return MediaSources(self.media_root, self.allow_outside_media_root, self.allow_urls)

    def element(
        self, medium: Any, media: MediaSettings | None, kind: str | None = None, field: str | None = None
    ) -> dict[str, Any]:
        """Read a medium as it is decoded: its path joined to `media_root`, missing fields filled in.

        Args:
            medium: what the row holds for it, see `elements.read_element`.
            media: what to fill in; None to leave fields as they are.
            kind: `image` or `video`; by default what the mapping `medium` says.
            field: the row's field, for errors.

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
