# SPDX-License-Identifier: Apache-2.0
"""Writes a page that shows a selection of records with the frames that a model sees, in one HTML file.

    files → selection → frames of its media → page

The page needs no network. Texts of records are escaped, and its security policy allows no script but its own.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_tools.look.cards import STATES, Card
from data_tools.look.page import page_template
from data_tools.look.pictures import Pictures, pictures_of
from data_tools.look.selection import Selection
from data_tools.look.stats import left_out
from data_tools.records.folders import whole_files
from data_tools.records.outputs import check_file
from verl_p2r.accuracy import problem_types
from verl_p2r.cpus import available_cpus
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Medium

PICTURES = 16 << 20  # the most bytes that all pictures take on the page


@dataclass(frozen=True)
class Page:
    """A page that was written.

    Args:
        bytes: its size.
        faults: errors of the media that could not be shown.
    """

    bytes: int
    faults: Sequence[str]


def write_page(
    selection: Selection, out: Path, media_root: Path, frames: int, on_medium: Callable[[], object] = lambda: None
) -> Page:
    """Read the media of a selection and write its page, which appears whole or not at all.

    Args:
        selection: the records.
        out: path of the page; an earlier one is replaced.
        media_root: folder that the records' paths are relative to.
        frames: the most pictures of a video.
        on_medium: called once a record, when its medium has been read.

    Raises:
        ValueError: `out` is one of the files that were read, is not a regular file, or another process is writing it.
        OSError: the page cannot be written; an earlier one stays.
    """
    if os.path.realpath(out) in map(os.path.realpath, selection.files):
        raise ValueError(f"{out} would be replaced, but records are read from it: name another file")
    room = PICTURES // max(len(selection.cards), 1)
    media = Counter(card.medium for card in selection.cards)

    def read(medium: Medium) -> Pictures:
        try:
            pictures = pictures_of(medium.element(media_root), frames, room)
        except RowError as error:  # its path leads out of the media root
            pictures = Pictures(error=str(error))
        for _ in range(media[medium]):
            on_medium()
        return pictures

    check_file(out)
    with whole_files(out.parent, out.name) as partial:
        with ThreadPoolExecutor(min(4, available_cpus())) as pool:
            shown = dict(zip(media, pool.map(read, media), strict=True))
        html = _render(selection, [(card, shown[card.medium]) for card in selection.cards])
        content = html.encode("utf-8", "replace")  # file names may contain invalid Unicode
        (partial / out.name).write_bytes(content)
    return Page(len(content), [pictures.error for pictures in shown.values() if pictures.error])


def _render(selection: Selection, cards: Sequence[tuple[Card, Pictures]]) -> str:
    shown = Counter((card.problem_type, card.state) for card, _ in cards)
    choices = {
        name: sorted({getattr(card, name) for card, _ in cards} - {""})
        for name in ("problem_type", "source", "modality", "state", "reason")
    }
    kinds = [kind for kind in problem_types() if any(selection.totals[kind, state] for state in STATES)]
    return page_template("data_tools.look", "view.html.j2").render(
        sample=selection,
        cards=cards,
        shown=shown,
        choices=choices,
        kinds=kinds,
        states=STATES,
        left_out=left_out,
    )
