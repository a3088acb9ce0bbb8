# SPDX-License-Identifier: Apache-2.0
"""What `verl-p2r doctor` reports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        what: the thing that was checked.
        found: its state.
        remedy: what to do; empty when all is well.
        fatal: a remedy makes the command exit with 1.
    """

    what: str
    found: str
    remedy: str = ""
    fatal: bool = True
