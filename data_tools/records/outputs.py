# SPDX-License-Identifier: Apache-2.0
"""Resolves the place of an output, checks what may be replaced there, and names it in errors."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors that only writing causes


def place_of(output: Path) -> Path:
    """Return the absolute path of an output, the same for every name that leads to it.

    Args:
        output: a file or folder that will be replaced as a whole; it need not exist.

    Raises:
        ValueError: `output` itself is a symbolic link. Replacing it would replace the link, not what it points to.
    """
    if output.is_symlink():
        raise ValueError(f"{output} is a symbolic link to {os.readlink(output)}: name the place that it points to")
    return Path(os.path.realpath(output))


def check_file(file: Path) -> None:
    """Refuse a path where no file can be put.

    Raises:
        ValueError: the path is a symbolic link, a folder or a device.
    """
    place = place_of(file)
    if place.exists() and not place.is_file():
        raise ValueError(f"{file} is not a regular file: name another file to write")


@contextmanager
def naming(output: Path) -> Iterator[None]:
    """Add the name of an output to errors about writing it, because Python's lack it when a write or a close fails."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _WRITING:
            error.filename = str(output)
        raise
