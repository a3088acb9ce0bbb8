# SPDX-License-Identifier: Apache-2.0
"""A record's response: whole, or put together from the parts that the release keeps in fields of their own."""

from verl_p2r.template import parse_response


def response_of(output: str | None, process: str | None, observation: str | None, solution: str) -> str | None:
    """Find the response of a record in the template.

    Args:
        output: a whole response.
        process: a whole response, or its thinking.
        observation: of the response.
        solution: the ground truth, the answer of a response that is put together.

    Returns:
        `output` or `process` where it keeps to the template, else the parts put together: `observation`, the thinking
        of `process`, and the solution [ours]; None when there is no response.

    >>> response_of(None, "<think>so</think>", "a ball", "3")
    '<observation>a ball</observation>\\n<think>so</think>\\n<answer>3</answer>'
    """
    for text in (output, process):
        if text is not None and "<observation>" in text:
            parsed = parse_response(text)
            if parsed.perception_well_formed and parsed.reasoning_well_formed:
                return text.strip()
    if not observation or not process:
        return None
    text = (
        f"<observation>{inside(observation, 'observation')}</observation>\n<think>{inside(process, 'think')}</think>\n"
        f"<answer>{inside(solution, 'answer')}</answer>"
    )
    parsed = parse_response(text)
    return text if parsed.perception_well_formed and parsed.reasoning_well_formed else None


def inside(text: str, tag: str) -> str:
    """Give what stands inside the first block of a tag; the text itself when there is none.

    >>> inside("<think> so </think> and", "think"), inside(" so ", "think")
    ('so', 'so')
    """
    _, opened, rest = text.partition(f"<{tag}>")
    return (rest.partition(f"</{tag}>")[0] if opened else text).strip()
