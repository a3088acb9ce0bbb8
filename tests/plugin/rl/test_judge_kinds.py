# SPDX-License-Identifier: Apache-2.0
"""Rewards from judges that give probabilities, that combine others, and that look at the media."""

import asyncio

import pytest
from PIL import Image
from test_reward_manager import GOOD, MALFORMED, data, manager, score, tokenizer  # noqa: F401  a fixture

from verl_p2r.judge import Verdict


class UnsureJudge:
    """Says Yes with a probability."""

    gives_probabilities = True

    def __init__(self, probability=0.7):
        self.probability = probability

    async def judge(self, request):
        return Verdict(self.probability >= 0.5, "", probability=self.probability)


@pytest.mark.parametrize(
    ("soft", "probability", "accuracy", "reward"),
    [(False, 0.7, 1.0, 2.2), (True, 0.7, 0.7, 1.9), (False, 0.3, 0.0, 1.0), (True, 0.3, 0.3, 1.3)],
)
def test_a_soft_reward_is_a_switch(tokenizer, soft, probability, accuracy, reward):  # noqa: F811
    judge = {"name": f"{__name__}:UnsureJudge", "kwargs": {"probability": probability}, "soft": soft}
    _, info = score(manager(tokenizer, judge=judge), data(tokenizer, GOOD))
    assert (info["perception_accuracy"], info["perception_reward"]) == (accuracy, pytest.approx(reward))


def test_a_soft_reward_needs_a_judge_that_gives_probabilities(tokenizer):  # noqa: F811
    with pytest.raises(ValueError, match=r"judge\.soft is true, but the judge 'facts' gives no probabilities"):
        manager(tokenizer, judge={"name": "facts", "soft": True})


def test_a_combined_judge_shows_each_members_verdict(tokenizer):  # noqa: F811
    members = {"sure": {"name": f"{__name__}:UnsureJudge"}, "silent": {"name": "test_reward_manager:SilentJudge"}}
    own = manager(tokenizer, judge={"name": "any", "kwargs": {"members": members}})
    _, info = score(own, data(tokenizer, GOOD))
    assert (info["perception_accuracy"], info["verdict_sure"], info["verdict_silent"]) == (1.0, 1.0, None)
    _, malformed = score(own, data(tokenizer, MALFORMED))
    assert (malformed["verdict_sure"], malformed["verdict_silent"]) == (None, None)  # no judge was asked
    assert info.keys() == malformed.keys()


def test_the_visual_judge_is_shown_the_media_of_the_prompt(tokenizer, judge_server, tmp_path):  # noqa: F811
    """The question has a red and a blue picture; the judge says Yes to an observation of the colours it sees."""
    for colour, shade in (("red", (220, 25, 25)), ("blue", (40, 70, 230))):
        Image.new("RGB", (112, 112), shade).save(tmp_path / f"{colour}.png")
    own = manager(tokenizer, judge={"name": "visual", "kwargs": {"model": "judge", "base_urls": judge_server.base_url}})

    async def accuracy(picture, text):
        content = [{"type": "image", "image": str(tmp_path / picture)}, {"type": "text", "text": "Which colour?"}]
        row = data(tokenizer, text, raw_prompt=[{"role": "user", "content": content}])
        return (await own.run_single(row))["reward_extra_info"]["perception_accuracy"]

    async def main():
        accuracies = [await accuracy(picture, GOOD) for picture in ("red.png", "blue.png", "none.png")]
        await own.judge.aclose()
        return accuracies

    assert asyncio.run(main()) == [1.0, 0.0, None]
