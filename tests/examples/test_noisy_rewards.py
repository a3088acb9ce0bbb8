# SPDX-License-Identifier: Apache-2.0
"""The reward manager that flips verdicts and answers on purpose."""

import asyncio
import re
import sys
from collections import Counter

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from paths import QUICKSTART
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.reward import resolve_reward_manager_cls

sys.path.insert(0, str(QUICKSTART))

import numpy as np
from noisy_rewards import Coins

from verl_p2r.plugin.rl.trainer import check_config

RIGHT = "<observation>red</observation><think>so</think><answer>B</answer>"
BLIND = "<think>so</think><answer>A</answer>"


class Letters:
    """A tokenizer whose tokens are characters."""

    pad_token_id = 0

    def decode(self, ids, **_):
        return "".join(chr(int(token)) for token in ids)


def manager(**flipped):
    band = {"length": {"minimum": 1, "maximum": 10}}
    config = OmegaConf.create(
        {
            "algorithm": {"p2r": {"perception": band, "reasoning": band}},
            "data": {"seed": 7},
            "trainer": {"flipped": {"verdicts": 0.0, "answers": 0.0, **flipped}},
            "reward": {
                "reward_manager": {
                    "source": "importlib",
                    "name": "NoisyRewards",
                    "module": {"path": str(QUICKSTART / "noisy_rewards.py")},
                }
            },
        }
    )
    return resolve_reward_manager_cls(config)(config, Letters())


def test_the_overrides_of_compare_sh_compose_and_pass_the_check_at_start():
    with initialize_config_module("verl_p2r.config", version_base=None):
        config = compose(
            "p2r_ppo_cpu",
            [
                "data.seed=7",
                "reward.reward_manager.source=importlib",
                f"reward.reward_manager.module.path='{QUICKSTART / 'noisy_rewards.py'}'",
                "reward.reward_manager.name=NoisyRewards",
                "+trainer.flipped.verdicts=0.3",
                "+trainer.flipped.answers=0",
            ],
        )
    check_config(config)
    rewards = resolve_reward_manager_cls(config)(config, Letters())
    assert (rewards.coins.verdicts, rewards.coins.answers, rewards.coins.seed) == (0.3, 0, 7)


def score(rewards, text: str, split: str = "train") -> dict:
    ids = torch.tensor([[ord(letter) for letter in text]])
    batch = TensorDict(
        {"prompts": torch.ones(1, 2), "responses": ids, "attention_mask": torch.ones(1, 2 + ids.shape[1])}, batch_size=1
    )
    columns = {
        "data_source": "toy",
        "problem_type": "multiple choice",
        "reward_model": {"ground_truth": "<answer>B</answer>"},
        "extra_info": {"index": 3, "split": split, "question": "Which?", "facts": ["red"], "options": ["blue", "red"]},
    }
    rows = {name: np.array([value], dtype=object) for name, value in columns.items()}
    return asyncio.run(rewards.run_single(DataProto(batch, rows)))


def parts(result: dict) -> list[float]:
    info = result["reward_extra_info"]
    return [info[f"{process}_{part}"] for process in ("perception", "reasoning") for part in ("accuracy", "reward")]


def test_each_dial_flips_its_own_reward():
    # Right: accuracy 1 + format 1 + length 0.2; wrong: the format alone.
    assert parts(score(manager(), RIGHT)) == pytest.approx([1, 2.2, 1, 2.2])
    assert parts(score(manager(verdicts=1.0), RIGHT)) == pytest.approx([0, 1.0, 1, 2.2])
    flipped = score(manager(answers=1.0), RIGHT)
    assert parts(flipped) == pytest.approx([1, 2.2, 0, 1.0])
    assert flipped["reward_score"] == pytest.approx(3.2)
    wrong = RIGHT.replace("red", "blue").replace("B<", "A<")
    assert parts(score(manager(), wrong)) == pytest.approx([0, 1.0, 0, 1.0])
    assert parts(score(manager(verdicts=1.0, answers=1.0), wrong)) == pytest.approx([1, 2.2, 1, 2.2])


def test_what_was_not_judged_and_what_is_for_validation_is_not_flipped():
    everything = manager(verdicts=1.0, answers=1.0)
    assert parts(score(everything, BLIND))[:2] == [0, 0.0]
    assert parts(score(everything, RIGHT, split="val")) == pytest.approx([1, 2.2, 1, 2.2])
    assert parts(score(everything, "<observation>red</observation>")) == pytest.approx([0, 1.0, 0, 0.0])


def test_flips_depend_on_the_seed_and_not_on_the_order():
    def tossed(seed: int, responses: list[str]) -> dict[str, Counter]:
        coins = Coins(0.3, 0.3, seed)
        found: dict[str, Counter] = {response: Counter() for response in responses}
        for response in responses:
            found[response][coins.toss("train row 1", response)] += 1
        return found

    responses = [f"answer {number % 20}" for number in range(200)]
    assert tossed(1, responses) == tossed(1, responses[::-1])
    assert tossed(1, responses) != tossed(2, responses)


def test_shares_are_met_and_the_two_coins_are_independent():
    coins = Coins(0.3, 0.1, 0)
    tossed = [coins.toss("train row 1", "the same response") for _ in range(4000)]
    verdicts, answers = (sum(column) / 4000 for column in zip(*tossed, strict=True))
    assert verdicts == pytest.approx(0.3, abs=0.03)  # four standard deviations
    assert answers == pytest.approx(0.1, abs=0.02)
    assert sum(one and other for one, other in tossed) / 4000 == pytest.approx(0.03, abs=0.011)


def test_a_share_above_one_is_named():
    with pytest.raises(ValueError, match=re.escape("trainer.flipped.answers is 30: give a share between 0 and 1")):
        manager(answers=30)
