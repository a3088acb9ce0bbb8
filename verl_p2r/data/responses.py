# SPDX-License-Identifier: Apache-2.0
"""A record's response: one field, or put together from the fields that the release keeps its parts in."""

from verl_p2r.template import inside, parse_response


def response_of(output: str | None, process: str | None, observation: str | None, solution: str) -> str | None:
    """Find the response of a record in the template.

    Args:
        output: a whole response.
        process: a whole response, or its thinking.
        observation: observation of the response.
        solution: the ground truth, used as the answer of a response that is put together.

    Returns:
        `output` or `process` if it keeps to the template. Otherwise the parts put together: `observation`, the thinking
        in `process`, and the solution [ours]. None when there is no response.

    >>> response_of(None, "<think>so</think>", "a ball", "3")
    '<observation>a ball</observation>\\n<think>so</think>\\n<answer>3</answer>'
    """
    for text in (output, process):
        if text is not None and "<observation>" in text and _well_formed(text):
            return text.strip()
    if not observation or not process:
        return None
    text = (
        f"<observation>{inside(observation, 'observation')}</observation>\n<think>{inside(process, 'think')}</think>\n"
        f"<answer>{inside(solution, 'answer')}</answer>"
    )
    return text if _well_formed(text) else None


def _well_formed(text: str) -> bool:
    parsed = parse_response(text)
    return parsed.perception_well_formed and parsed.reasoning_well_formed
