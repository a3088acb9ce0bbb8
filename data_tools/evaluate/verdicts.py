# SPDX-License-Identifier: Apache-2.0
"""What judges said about the replies of runs, for the cards of a report.

Two commands write it: `verl-p2r-data judge` (does the observation suffice?) and `verl-p2r-eval mismatch` (which option
does the thinking conclude with?).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_tools.look.selection import sources_of
from verl_p2r.data.reading import read_values

NO_VERDICT = "no verdict"
_WORDS = {True: "Yes", False: "No"}
_FIELDS = ("verdict", "concluded")

_Key = tuple[str, str]


class Verdicts:
    """Verdicts on observations and readings of thinking, by item and reply.

    Args:
        folders: outputs of `verl-p2r-data judge` and `verl-p2r-eval mismatch` on the runs of a report.

    Raises:
        ValueError: a folder holds neither verdicts nor readings.
    """

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self._found: dict[str, dict[_Key, Mapping[str, Any]]] = {field: {} for field in _FIELDS}
        for folder in folders:
            if not self._read(folder):
                raise ValueError(
                    f"{folder} holds no verdicts: name an output of `verl-p2r-data judge` or `verl-p2r-eval mismatch`"
                )

    def verdict(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Return the verdict on a reply's observation, and the judge's reason.

        Args:
            record: a record of a run, see `results.read_run`.

        Returns:
            `Yes`, `No` or `no verdict`, and the reason; two empty texts if no folder holds verdicts.
        """
        if not self._found["verdict"]:
            return "", ""
        said = self._found["verdict"].get(_key(record["problem_id"], record["response"]))
        return (_WORDS[said["value"]], str(said.get("reason") or "")) if said else (NO_VERDICT, "")

    def thought(self, record: Mapping[str, Any]) -> str:
        """Return the letter that a reply's thinking concludes with; empty if it was not read."""
        said = self._found["concluded"].get(_key(record["problem_id"], record["response"]))
        return str(said["letter"]) if said else ""

    def _read(self, folder: Path) -> bool:
        any_found = False
        for file in (file for source in sources_of([folder]) for file in source):
            for raw in read_values(file):
                record = raw.value if isinstance(raw.value, dict) else {}
                for field in _FIELDS:
                    if isinstance(record.get(field), dict):
                        self._found[field][_key(record["problem_id"], record.get("output"))] = record[field]
                        any_found = True
        return any_found


def _key(problem_id: Any, reply: Any) -> _Key:
    return str(problem_id), str(reply or "")
