# SPDX-License-Identifier: Apache-2.0
"""A reward manager that is wrong on purpose: it flips a share of the verdicts and of the answers' accuracies.

    OUT=outputs/noisy bash examples/quickstart/rl.sh reward.reward_manager.source=importlib \
      reward.reward_manager.module.path=examples/quickstart/noisy_rewards.py \
      reward.reward_manager.name=NoisyRewards +trainer.flipped.verdicts=0.3 +trainer.flipped.answers=0.0

Only training rows are flipped, so validation stays comparable. `compare.sh` uses it for its noise dials.
"""

import random
from collections import Counter
from typing import Any

from verl import DataProto

from verl_p2r.data.rows import Row
from verl_p2r.plugin.rl.reward_manager import P2RRewardManager
from verl_p2r.rewards import has_observation, perception_reward, reasoning_reward
from verl_p2r.segments import decode_response, visible_lengths
from verl_p2r.settings import P2RSettings
from verl_p2r.template import parse_response
from verl_p2r.visible import is_visible

PROCESSES = ("perception", "reasoning")


class Coins:
    """Decides which verdicts and answers are flipped; equal seeds decide equally for equal responses.

    Draws depend on the seed, the row, the response, and how often the row had the same response before. So the order
    in which rollouts arrive does not matter, and equal responses in a group have independent errors.

    Args:
        verdicts: share of verdicts to flip, in [0, 1].
        answers: share of answers to flip, in [0, 1].
        seed: seed of the draws.

    Raises:
        ValueError: a share is not in [0, 1].
    """

    def __init__(self, verdicts: float, answers: float, seed: int) -> None:
        for name, share in (("verdicts", verdicts), ("answers", answers)):
            if not 0 <= share <= 1:
                raise ValueError(f"trainer.flipped.{name} is {share}: give a share between 0 and 1, for example 0.3")
        self.verdicts, self.answers, self.seed = verdicts, answers, seed
        self._seen: Counter[tuple[str, str]] = Counter()

    def toss(self, row: str, response: str) -> tuple[bool, bool]:
        """Decide whether to flip the verdict, and whether to flip the answer's accuracy."""
        number = self._seen[row, response]
        self._seen[row, response] += 1
        rng = random.Random(f"{self.seed}/{row}/{number}/{response}")
        return rng.random() < self.verdicts, rng.random() < self.answers


def flip(
    info: dict[str, Any], text: str, visible: tuple[int, int], tossed: tuple[bool, bool], settings: P2RSettings
) -> dict[str, Any]:
    """Change one response's rewards to what they would be with the opposite verdict or accuracy.

    Args:
        info: `reward_extra_info` of the reward manager `p2r`.
        text: the response.
        visible: visible tokens of each process, see `segments.visible_lengths`.
        tossed: whether to flip verdict and accuracy.
        settings: the rewards' settings.

    Returns:
        A changed copy. A response without an observation, or without an answer, was not judged and keeps its reward.
        `both_rewards`, which only `filter_groups` reads, is not changed.
    """
    parsed = parse_response(text)
    judged = has_observation(parsed), is_visible(parsed.answer or "")
    changed = dict(info)
    for number, process in enumerate(PROCESSES):
        right = info[f"{process}_accuracy"]
        if not tossed[number] or not judged[number] or right is None:
            continue
        if process == "perception":
            earned = perception_reward(parsed, visible[0], not right, settings)
        else:
            earned = reasoning_reward(parsed, visible[1], 1 - right, settings)
        changed |= {
            f"{process}_accuracy": 1 - right,
            f"{process}_reward": earned.total,
            f"{process}_length_reward": earned.length,
        }
    return changed


class NoisyRewards(P2RRewardManager):
    """The reward manager `p2r` with flips: shares in `trainer.flipped.{verdicts,answers}`, seed in `data.seed`."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.coins = Coins(seed=config.data.seed, **config.trainer.flipped)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one response, with flips if its row is for training."""
        result = await super().run_single(data)
        item = data[-1]
        if item.non_tensor_batch["extra_info"]["split"] != "train":
            return result
        length = int(item.batch["attention_mask"][len(item.batch["prompts"]) :].sum())
        ids = item.batch["responses"][:length].tolist()
        text = decode_response(ids, self.tokenizer)
        tossed = self.coins.toss(Row.from_columns(item.non_tensor_batch).name, text)
        info = flip(result["reward_extra_info"], text, visible_lengths(ids, self.tokenizer), tossed, self.settings)
        score = info["perception_reward"] + info["reasoning_reward"]
        return {"reward_score": score, "reward_extra_info": info}
