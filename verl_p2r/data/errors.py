# SPDX-License-Identifier: Apache-2.0
"""The error of one row or record; nothing else is lost with it."""


class RowError(ValueError):
    """A row that cannot be used.

    Args:
        field: the field at fault.
        reason: a short name, the same for all rows of one kind, for counting.
        problem: what is wrong, and what to do about it.
        name: how messages call the row; empty where the caller adds it.
        medium: the path of the media file at fault, if it is one.
    """

    def __init__(self, field: str, reason: str, problem: str, name: str = "", medium: str | None = None) -> None:
        super().__init__(field, reason, problem, name, medium)  # all arguments, so that it can be pickled
        self.field, self.reason, self.problem, self.name, self.medium = field, reason, problem, name, medium

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}" if self.name else self.problem
