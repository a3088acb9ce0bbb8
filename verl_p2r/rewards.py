# SPDX-License-Identifier: Apache-2.0
"""The reward of each process: accuracy + format + length, Eq. 5 of VideoP2R (arXiv 2511.11113)."""

from dataclasses import dataclass

from verl_p2r.settings import LengthBand, P2RSettings, ProcessSettings
from verl_p2r.template import ParsedResponse
from verl_p2r.visible import count_visible, is_visible


@dataclass(frozen=True)
class ProcessReward:
    """The three weighted terms of one process's reward for one response.

        R_k = R_acc,k + R_form,k + R_len,k                                      (arXiv 2511.11113, Eq. 5)

    Args:
        accuracy: The accuracy term.
        format: The format term.
        length: The length term.

    >>> round(ProcessReward(accuracy=1.0, format=1.0, length=0.2).total, 6)
    2.2
    """

    accuracy: float
    format: float
    length: float

    @property
    def total(self) -> float:
        """The sum of the three terms."""
        return self.accuracy + self.format + self.length


NO_REWARD = ProcessReward(0.0, 0.0, 0.0)
"""The reward of a disabled process."""


def length_reward(tokens: int, band: LengthBand, *, accuracy: float, format: float) -> float:
    """Reward a segment of the desired length if its content is accurate and its form is correct.

        R_len,k = band.reward  if R_acc,k ≠ 0, R_form,k ≠ 0 and minimum ≤ tokens ≤ maximum, else 0

    (arXiv 2511.11113, Eq. 5; the band includes both ends.)

    Args:
        tokens: The segment's length, in tokens of visible text (see `segments.visible_lengths`) [ours].
        band: The lengths that earn the reward, in tokens.
        accuracy: The process's accuracy before weighting [ours].
        format: The process's format reward before weighting [ours].

    >>> band = LengthBand(128, 320, 0.2)
    >>> [length_reward(n, band, accuracy=1.0, format=1.0) for n in (127, 128, 320, 321)]
    [0.0, 0.2, 0.2, 0.0]
    >>> length_reward(200, band, accuracy=0.0, format=1.0)
    0.0
    """
    earned = accuracy != 0 and format != 0 and band.minimum <= tokens <= band.maximum
    return band.reward if earned else 0.0


def has_observation(parsed: ParsedResponse) -> bool:
    """Tell whether a response has a complete observation with visible text; only then is the judge asked.

    >>> from verl_p2r.template import parse_response
    >>> has_observation(parse_response("<observation>a red ball</observation>")), has_observation(parse_response("hm"))
    (True, False)
    """
    return is_visible(parsed.observation or "")


def perception_reward(
    parsed: ParsedResponse, tokens: int, verdict: bool | float | None, settings: P2RSettings
) -> ProcessReward:
    """Reward the perception process of one response: R_P of Eq. 5.

    Args:
        parsed: The parsed response.
        tokens: The visible tokens of the observation, see `segments.visible_lengths`.
        verdict: The judge's verdict, or its P(Yes) for a soft reward [ours]. None if there is none: the accuracy is
            then 0, and the caller marks the row invalid to exclude it from the group's statistics.
        settings: Weights, band and switches.

    Returns:
        The weighted terms; all 0 if `perception.enabled` is false.

    Edge rules:
        Without a complete observation of visible text the accuracy is 0, regardless of the verdict [ours]. The number
        of tokens is at most the number of visible characters, because each visible token contains one [ours]. A soft
        accuracy below one half earns no length reward, as a No earns none [ours].
    """
    accuracy = float(verdict or 0.0) if has_observation(parsed) else 0.0
    tokens = min(tokens, count_visible(parsed.observation or ""))
    with_length = settings.length_reward and accuracy >= 0.5
    return _reward(accuracy, parsed.perception_well_formed, tokens, settings.perception, with_length)


def reasoning_reward(parsed: ParsedResponse, tokens: int, accuracy: float, settings: P2RSettings) -> ProcessReward:
    """Reward the reasoning process of one response: R_R of Eq. 5.

    Args:
        parsed: The parsed response.
        tokens: The visible tokens of think and answer, see `segments.visible_lengths`.
        accuracy: The `answer_accuracy` of the response's answer, in [0, 1].
        settings: Weights, band and switches.

    Returns:
        The weighted terms; all 0 if `reasoning.enabled` is false.

    Edge rules:
        Without an answer of visible text the accuracy is 0 [ours]. The number of tokens is at most the number of
        visible characters in think and answer [ours].

    Raises:
        ValueError: The accuracy is not in [0, 1].
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is {accuracy}: it must lie in [0, 1], as answer_accuracy's does")
    accuracy = float(accuracy) if is_visible(parsed.answer or "") else 0.0
    tokens = min(tokens, count_visible(f"{parsed.think or ''}{parsed.answer or ''}"))
    return _reward(accuracy, parsed.reasoning_well_formed, tokens, settings.reasoning, settings.length_reward)


def _reward(
    accuracy: float, well_formed: bool, tokens: int, process: ProcessSettings, with_length: bool
) -> ProcessReward:
    if not process.enabled:
        return NO_REWARD
    form = float(well_formed)
    length = length_reward(tokens, process.length, accuracy=accuracy, format=form) if with_length else 0.0
    return ProcessReward(process.accuracy_weight * accuracy, process.format_weight * form, length)
