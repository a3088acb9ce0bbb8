# SPDX-License-Identifier: Apache-2.0
"""Errors of media, and the time limit for reading one."""

import math
import os
import time

TIMEOUT_VARIABLE = "VERL_P2R_MEDIA_TIMEOUT"
TIMEOUT = 60.0  # seconds for one file, probing and decoding together, unless the variable is set
MAX_TIMEOUT = 1e6  # seconds; the largest number that FFmpeg can count


class MediaError(ValueError):
    """A media file that cannot be used; the message names the file and the reason."""


class RulesError(MediaError):
    """Rules for sampling or size that a file cannot satisfy."""


class Deadline:
    """The time limit for one file, from its first byte to its last frame.

    Args:
        name: name of the file, for messages.
        seconds: None for the environment variable `VERL_P2R_MEDIA_TIMEOUT`, 60 by default.
    """

    def __init__(self, name: str, seconds: float | None = None):
        self.name, self.seconds = name, timeout() if seconds is None else seconds
        self._end = time.monotonic() + self.seconds

    @property
    def remaining(self) -> float:
        """Seconds left.

        Raises:
            MediaError: the time is up.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.error
        return left

    @property
    def error(self) -> MediaError:
        """The error for a time that is up."""
        return MediaError(
            f"{self.name}: not read within {self.seconds:g} s: the file is damaged, too long or on slow storage; "
            f"drop it, or raise {TIMEOUT_VARIABLE}"
        )

    def check(self) -> None:
        """Raise a `MediaError` when the time is up."""
        _ = self.remaining


def timeout() -> float:
    """Read the seconds for one file from the environment.

    Raises:
        ValueError: the variable does not hold a positive number.
    """
    value = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT))
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise ValueError(f"the environment variable {TIMEOUT_VARIABLE} is {value!r}: give seconds, more than 0")
    return min(seconds, MAX_TIMEOUT)
