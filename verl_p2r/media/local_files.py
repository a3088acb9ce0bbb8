# SPDX-License-Identifier: Apache-2.0
"""Questions about local files that never raise: whatever a path is, the answer is yes or no."""

import os
import stat


def is_local_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a regular file, also where `Path.is_file` raises.

    Args:
        path: any path: too long for the file system, with NUL bytes or lone surrogates, in a folder that may not be
            entered. Symbolic links are followed.

    Returns:
        False for everything but a regular file: folders, pipes, devices, and paths that cannot be looked up.

    >>> is_local_file(__file__), is_local_file("n" * 300), is_local_file("a\\0b")
    (True, False, False)
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: NUL bytes, and characters that the file system cannot encode
        return False
