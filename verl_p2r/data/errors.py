# SPDX-License-Identifier: Apache-2.0
"""The error of one row or record."""


class RowError(ValueError):
    """A row that cannot be used.

    Args:
        field: the wrong field.
        reason: a short name, the same for all rows with this fault, for counting.
        problem: what is wrong, and what to do about it.
        name: name of the row in messages; empty if the caller adds it.
        medium: path of the media file that causes the fault, if one does.
    """

    def __init__(self, field: str, reason: str, problem: str, name: str = "", medium: str | None = None) -> None:
        super().__init__(field, reason, problem, name, medium)  # all arguments, so that it can be pickled
        self.field, self.reason, self.problem, self.name, self.medium = field, reason, problem, name, medium

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}" if self.name else self.problem
