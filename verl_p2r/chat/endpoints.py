# SPDX-License-Identifier: Apache-2.0
"""The servers of one client: their load, and how long each must be left alone."""

import asyncio
import random
import time
from collections.abc import Sequence

from yarl import URL

from verl_p2r.chat.addresses import Route
from verl_p2r.chat.errors import Failure

_REST_S, _MAX_REST_S = 0.5, 15.0


class Endpoint:
    """One server: its load, and until when it must not be asked.

    Args:
        route: The server's address and the proxy on the way to it, if any.
    """

    def __init__(self, route: Route) -> None:
        self.route, self.url = route, URL(route.address.chat)
        self.in_flight = 0
        self.failures = 0
        self.long_rests = 0
        self.rests_until = 0.0
        self.why_it_rests = ""

    def rest(self, seconds: float) -> None:
        """Send no calls here for so many seconds."""
        self.rests_until = max(self.rests_until, time.monotonic() + seconds)

    def unreachable(self) -> float:
        """Rest, twice as long after each failure; calls that fail at the same time count once.

        Returns:
            The remaining rest, in seconds.
        """
        now = time.monotonic()
        if self.rests_until <= now:
            self.rest(min(_REST_S * 2**self.failures, _MAX_REST_S))
            self.failures += 1
        return self.rests_until - now

    def asked_to_wait(self, seconds: float, deadline_s: float) -> None:
        """Rest as long as the server asks, but after a very long request only for a part of the deadline [ours].

        Otherwise a single reply that asks for an hour would exclude a server that recovers after a second.

        Args:
            seconds: The wait that the server asks for, in seconds.
            deadline_s: Time limit of a call, in seconds.
        """
        if seconds > deadline_s / 2:
            self.long_rests += self.rests_until <= time.monotonic()  # calls refused at the same time count once
            seconds = deadline_s / 4 if self.long_rests <= 1 else deadline_s
        self.rest(seconds)

    def succeeded(self) -> None:
        """Forget earlier failures."""
        self.failures = self.long_rests = 0


async def next_endpoint(endpoints: Sequence[Endpoint], last: Endpoint | None, end: float) -> Endpoint:
    """Wait for and return the least busy server that is not resting, preferably a different one than the last.

    Args:
        endpoints: All servers.
        last: The server that was asked last.
        end: When the call's deadline ends, on the monotonic clock, in seconds.

    Raises:
        Failure: Every server rests too long for the deadline.
    """
    while True:
        now = time.monotonic()
        awake = [endpoint for endpoint in endpoints if endpoint.rests_until <= now]
        if awake:
            return min(awake, key=lambda endpoint: (endpoint is last, endpoint.in_flight, random.random()))
        first = min(endpoints, key=lambda endpoint: endpoint.rests_until)
        rest = first.rests_until - now
        if rest > 0.75 * (end - now):  # the remaining time must suffice for a reply
            why = f"no server may be asked for {rest:.1f} s, too long for the deadline; {first.why_it_rests}"
            raise Failure(why, again=False)
        await asyncio.sleep(rest * random.uniform(1.0, 1.25))  # spread the calls that wait
