# SPDX-License-Identifier: Apache-2.0
"""The health check of a judge before a run: two questions whose verdicts are known."""

import asyncio
from collections.abc import Mapping

from verl_p2r.judge.protocol import Judge, JudgeRequest

_QUESTION = "Which ball does the child kick?\nOptions:\nA. the red ball\nB. the blue ball"
_WORDS = {True: "Yes", False: "No", None: "no verdict"}

KNOWN_REQUESTS = {
    True: JudgeRequest(
        question=_QUESTION,
        solution="<answer>A</answer>",
        observation="A child in a yellow coat stands between two balls, a red one and a blue one. The child walks up "
        "to the red ball and kicks the red ball across the grass. The blue ball lies still until the end.",
        problem_type="multiple choice",
        row="the known Yes",
    ),
    False: JudgeRequest(
        question=_QUESTION,
        solution="<answer>A</answer>",
        observation="A wooden bench stands under a tree at the edge of a park. Leaves fall, and a dog sleeps next to "
        "the bench. The camera does not move.",
        problem_type="multiple choice",
        row="the known No",
    ),
}
"""What `check_judge` asks: an observation that plainly suffices, and one that plainly does not."""


async def check_judge(judge: Judge, name: str, where: str = "algorithm.p2r.judge") -> None:
    """Refuse a judge that cannot tell a sufficient observation from an insufficient one.

    Args:
        judge: The judge; one without `ask_anew` is not asked. Of a combined judge each member is checked, and a judge
            with an attribute `known_requests` is asked those instead of `KNOWN_REQUESTS`.
        name: Its name in messages.
        where: The settings node, for messages.

    Raises:
        RuntimeError: A known question got the wrong verdict; the message quotes the reply.
    """
    for label, member in getattr(judge, "members", {}).items():
        await check_judge(member, f"{name}, member {label}", where)
    ask_anew = getattr(judge, "ask_anew", None)
    if ask_anew is None or hasattr(judge, "members"):
        return
    requests: Mapping[bool, JudgeRequest] = getattr(judge, "known_requests", KNOWN_REQUESTS)
    verdicts = await asyncio.gather(*(ask_anew(request) for request in requests.values()))
    wrong = [
        f"{request.row} got {_WORDS[verdict.value]}: {verdict.reason}"
        for (value, request), verdict in zip(requests.items(), verdicts, strict=True)
        if verdict.value is not value
    ]
    if wrong:
        raise RuntimeError(
            f"the judge {name!r} fails its health check, so its verdicts would teach nothing. {'. '.join(wrong)}. "
            f"Check that its server runs this model, or choose a stronger model; {where}.health_check=False "
            "skips this check"
        )
