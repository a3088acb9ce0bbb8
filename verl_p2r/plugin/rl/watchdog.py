# SPDX-License-Identifier: Apache-2.0
"""Ends a run that hangs.

If a worker dies while weights go from the trainer to vLLM, the other side waits forever, because verl 0.9.1 has no time
limit there. The watchdog times the phases of the trainer. When a phase exceeds the limit, it prints the stacks of all
threads and ends the process, and Ray ends the run.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 70  # EX_SOFTWARE


class Watchdog:
    """Times one phase at a time in a background thread.

    Args:
        limit: seconds that a phase may take; None disables the watchdog.
    """

    def __init__(self, limit: float | None):
        self.limit = limit
        self._phase: tuple[str, float] | None = None
        if limit is not None:
            threading.Thread(target=self._watch, name="p2r-watchdog", daemon=True).start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the `with` block; phases may be nested, and only the inner one is timed while it lasts.

        Args:
            name: for the message.
        """
        outer, self._phase = self._phase, (name, time.monotonic())
        try:
            yield
        finally:
            self._phase = outer and (outer[0], time.monotonic())

    def _watch(self) -> None:
        assert self.limit is not None
        while True:
            time.sleep(min(1.0, self.limit / 4))
            phase = self._phase
            if phase is not None and time.monotonic() - phase[1] > self.limit:
                self._end(phase[0])

    def _end(self, name: str) -> None:
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        print(
            f"verl_p2r watchdog: the phase '{name}' made no progress for {self.limit:.0f} s, so the run ends here. A "
            "worker has probably died: look for the first error above. Raise trainer.p2r.stall_timeout_s if the phase "
            "is only slow.",
            file=sys.__stderr__,
            flush=True,
        )
        os._exit(EXIT_CODE)
