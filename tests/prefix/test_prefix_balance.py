# SPDX-License-Identifier: Apache-2.0
"""Groups stay whole where the numbers allow it, and ranks get about the same work."""

import random

import pytest

from verl_p2r.prefix.balance import balanced_order
from verl_p2r.prefix.plan import workload


def batch(seed: int, prompts: int, rollouts: int, lost: int = 0):
    """Make rows with images, clips and a few long clips, as in the paper's data, and responses of about 600 tokens."""
    rng = random.Random(seed)
    keys, prefix, suffix = [], [], []
    for n in range(prompts):
        size = rng.choice([1324, 1324, 1000, 800, 556, 2348])
        for _ in range(rollouts):
            keys.append(n)
            prefix.append(size)
            suffix.append(max(20, int(rng.gauss(600, 150))))
    for _ in range(lost):  # verl pads the batch with rows of one token after a short prompt
        row = rng.randrange(len(keys))
        del keys[row], prefix[row], suffix[row]
    return keys + ["padding"] * lost, prefix + [127] * lost, suffix + [1] * lost


def chunk_loads(order, keys, prefix, suffix, ranks):
    size = len(order) // ranks
    chunks = [order[rank * size : (rank + 1) * size] for rank in range(ranks)]
    loads = []
    for chunk in chunks:
        members: dict = {}
        for row in chunk:
            members.setdefault(keys[row], []).append(row)
        loads.append(sum(workload(prefix[r[0]], [suffix[i] for i in r]) for r in members.values()))
    return chunks, loads


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize(("prompts", "ranks"), [(56, 8), (32, 8), (64, 16)])
def test_groups_stay_whole_and_rank_loads_are_balanced(seed, prompts, ranks):
    keys, prefix, suffix = batch(seed, prompts, 8)
    order, load = balanced_order(keys, prefix, suffix, ranks)
    assert sorted(order) == list(range(len(keys)))
    chunks, loads = chunk_loads(order, keys, prefix, suffix, ranks)
    assert loads == load
    assert sum(len({keys[row] for row in chunk}) for chunk in chunks) == prompts  # no group was cut
    if (prompts, ranks) == (56, 8):
        assert max(loads) <= 1.05 * sum(loads) / ranks


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("prompts", "ranks", "lost"), [(56, 8, 3), (7, 8, 0), (1, 4, 0), (5, 2, 2), (56, 16, 9)])
def test_incomplete_groups_keep_every_row_exactly_once(seed, prompts, ranks, lost):
    keys, prefix, suffix = batch(seed, prompts, 8, lost)
    order, load = balanced_order(keys, prefix, suffix, ranks)
    assert sorted(order) == list(range(len(keys)))
    chunks, loads = chunk_loads(order, keys, prefix, suffix, ranks)
    assert loads == load
    pieces = sum(len({keys[row] for row in chunk}) for chunk in chunks)
    assert pieces <= len(set(keys)) + ranks  # at most a cut for each rank


def test_balanced_order_matches_hand_made_example():
    """Prompts of 9, 9, 1 and 1 tokens with two rollouts each: a long and a short one on each of two ranks."""
    order, load = balanced_order(list("aabbccdd"), [9, 9, 9, 9, 1, 1, 1, 1], [1] * 8, 2)
    assert [sorted(order[:4]), sorted(order[4:])] in ([[0, 1, 4, 5], [2, 3, 6, 7]], [[0, 1, 6, 7], [2, 3, 4, 5]])
    assert load[0] == load[1]


def test_row_count_not_divisible_by_ranks_is_refused():
    with pytest.raises(ValueError, match="3 rows cannot be split equally over 2 ranks"):
        balanced_order("abc", [1, 1, 1], [1, 1, 1], 2)
