# SPDX-License-Identifier: Apache-2.0
"""Checks of local files that never raise, whatever the path is."""

import os
import stat


def is_local_file(path: str | os.PathLike[str]) -> bool:
    r"""Check whether a path names a regular file, even if `Path.is_file` would raise.

    Args:
        path: any path, also one that is too long, has NUL bytes or lone surrogates, or is in a forbidden folder.
            Symbolic links are followed.

    Returns:
        False for everything except a regular file: folders, pipes, devices, and paths that cannot be looked up.

    >>> is_local_file(__file__), is_local_file("n" * 300), is_local_file("a\0b")
    (True, False, False)
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: NUL bytes, and characters that the file system cannot encode
        return False
