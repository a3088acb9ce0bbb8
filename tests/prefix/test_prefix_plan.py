# SPDX-License-Identifier: Apache-2.0
"""Which rows share a prefix, how they are packed, and what attends to what: against slow loops over random batches."""

import random

import pytest
import torch

from verl_p2r.prefix.plan import PrefixPlan, micro_batches, packed_tokens, shared_groups, workload

BATCHES = 3000


def random_batch(seed: int):
    """Make rows of a few prompts that differ in tokens, only in media or only in positions, in any order."""
    rng = random.Random(seed)
    kinds = []
    for _ in range(rng.randint(1, 5)):
        tokens = [rng.randint(0, 2) for _ in range(rng.randint(1, 4))]
        kinds.append((tokens, rng.randint(0, 1), rng.randint(0, 1)))
    prompts, media, positions, suffix = [], [], [], []
    for _ in range(rng.randint(1, 14)):
        tokens, medium, shift = rng.choice(kinds)
        size = rng.randint(0, 6)
        prompts.append(torch.tensor(tokens))
        media.append(medium)
        positions.append(torch.arange(len(tokens) + size).repeat(4, 1) * torch.tensor([[1], [1 + shift], [1], [1]]))
        suffix.append(size)
    return rng, prompts, media, positions, suffix


def slow_groups(prompts, media, positions) -> list[list[int]]:
    groups: list[list[int]] = []
    for row in range(len(prompts)):
        for group in groups:
            other, size = group[0], len(prompts[row])
            if (
                prompts[row].tolist() == prompts[other].tolist()
                and media[row] == media[other]
                and positions[row][:, :size].tolist() == positions[other][:, :size].tolist()
            ):
                group.append(row)
                break
        else:
            groups.append([row])
    return groups


@pytest.mark.parametrize("first", range(0, BATCHES, 500))
def test_prefix_plans_of_random_batches_match_slow_reference(first):
    for seed in range(first, first + 500):
        rng, prompts, media, positions, suffix = random_batch(seed)
        prefix = [len(p) for p in prompts]
        groups = shared_groups(prompts, media, positions)
        assert groups == slow_groups(prompts, media, positions), seed

        budget = max(p + r for p, r in zip(prefix, suffix, strict=True)) + rng.randint(0, 25)
        wanted = rng.randint(1, len(prompts))
        bins = micro_batches(groups, prefix, suffix, budget, at_least=wanted)
        rows = [row for pieces in bins for piece in pieces for row in piece]
        assert sorted(rows) == list(range(len(prompts))), seed
        assert len(bins) >= wanted, seed
        assert all(sum(packed_tokens(p, prefix, suffix) for p in pieces) <= budget for pieces in bins), seed
        owner = {row: n for n, group in enumerate(groups) for row in group}
        assert all(len({owner[row] for row in piece}) == 1 for pieces in bins for piece in pieces), seed

        for pieces in bins:
            _check_plan(pieces, prompts, prefix, suffix)


def _check_plan(pieces, prompts, prefix, suffix) -> None:
    """Compare with a loop that walks the rows token by token."""
    rows = [row for piece in pieces for row in piece]
    local = {row: n for n, row in enumerate(rows)}
    groups = [[local[row] for row in piece] for piece in pieces]
    # every token of the micro-batch is its own number, 1000 * row + place; a prefix is named after its first row
    lengths = [prefix[row] + suffix[row] for row in rows]
    named = [torch.arange(1000 * n, 1000 * n + length) for n, length in enumerate(lengths)]
    plan = PrefixPlan(groups, [prefix[row] for row in rows], lengths)
    packed = plan.pack(named).tolist()
    assert len(packed) == plan.tokens == sum(packed_tokens(piece, prefix, suffix) for piece in pieces)

    first = {n: group[0] for group in groups for n in group}
    names = [
        [1000 * (first[n] if place < prefix[row] else n) + place for place in range(lengths[n])]
        for n, row in enumerate(rows)
    ]
    at = {name: place for place, name in enumerate(packed)}
    predict, labels = [], []
    for n in plan.order:
        size = prefix[rows[n]]
        predict += [at[names[n][place - 1]] for place in range(size, lengths[n])]
        labels += [1000 * n + place for place in range(size, lengths[n])]
    assert plan.predict.tolist() == predict
    assert plan.responses(named).tolist() == labels

    sees: dict[int, set[int]] = {}
    for prefix_start, prefix_size, start, size in plan.segments:
        for query in range(start, start + size):
            assert query not in sees
            sees[query] = {*range(prefix_start, prefix_start + prefix_size), *range(start, query + 1)}
    for row_names in names:
        for place, name in enumerate(row_names):
            assert sees[at[name]] == {at[other] for other in row_names[: place + 1]}
    assert set(sees) == set(range(plan.tokens))

    values = torch.tensor([float(label) for label in labels])
    for n, row in enumerate(plan.unpack(values)):
        size = prefix[rows[n]]
        expected = [
            float(1000 * n + place + 1) if size - 1 <= place < lengths[n] - 1 else 0.0 for place in range(lengths[n])
        ]
        assert row.tolist() == expected

    query, key = plan.boundaries()
    index = plan.key_index().tolist()
    assert query.dtype == key.dtype == torch.int32
    assert query[-1] == plan.tokens
    for n, (prefix_start, prefix_size, start, size) in enumerate(plan.segments):
        assert [int(query[n]), int(query[n + 1])] == [start, start + size]
        keys = index[int(key[n]) : int(key[n + 1])]
        assert keys == [*range(prefix_start, prefix_start + prefix_size), *range(start, start + size)]


def test_prefix_plan_of_one_group_matches_hand_made_example():
    """Prompt a b, responses c d and e: [a b | c d | e]; b predicts c and e, c predicts d."""
    plan = PrefixPlan([[0, 1]], [2, 2], [4, 3])
    assert plan.pack([torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 5])]).tolist() == [1, 2, 3, 4, 5]
    assert plan.predict.tolist() == [1, 2, 1]
    assert [tuple(s) for s in plan.segments] == [(0, 0, 0, 2), (0, 2, 2, 2), (0, 2, 4, 1)]
    assert [row.tolist() for row in plan.unpack(torch.tensor([7.0, 8.0, 9.0]))] == [[0, 7, 8, 0], [0, 9, 0]]


def test_group_is_split_only_when_it_exceeds_micro_batch():
    prefix, suffix = [10] * 4 + [3], [4] * 4 + [2]
    assert micro_batches([[0, 1, 2, 3], [4]], prefix, suffix, 31) == [[[0, 1, 2, 3], [4]]]
    assert micro_batches([[0, 1, 2, 3], [4]], prefix, suffix, 26) == [[[0, 1, 2, 3]], [[4]]]
    assert micro_batches([[0, 1, 2, 3], [4]], prefix, suffix, 19) == [[[0, 1]], [[2, 3]], [[4]]]


def test_extra_micro_batches_separate_groups_before_splitting_one():
    prefix, suffix = [5] * 6, [2] * 6
    groups = [[0, 1, 2], [3, 4, 5]]
    assert micro_batches(groups, prefix, suffix, 100, at_least=2) == [[[0, 1, 2]], [[3, 4, 5]]]
    three = micro_batches(groups, prefix, suffix, 100, at_least=3)
    assert sorted(map(len, (pieces[0] for pieces in three))) == [1, 2, 3]


def test_rows_that_do_not_fit_micro_batches_are_refused():
    with pytest.raises(ValueError, match="a row of 14 tokens is larger than a micro-batch of 13"):
        micro_batches([[0]], [10], [4], 13)
    with pytest.raises(ValueError, match="2 rows cannot fill 3 micro-batches"):
        micro_batches([[0, 1]], [1, 1], [1, 1], 9, at_least=3)
    with pytest.raises(ValueError, match="row 0 has an empty prompt"):
        shared_groups([torch.tensor([], dtype=torch.int64)], [0], [torch.zeros(1, 3)])


def test_workload_of_one_row_equals_verl_formula():
    assert workload(7, [5]) == 24576 * 12 + 12**2
    assert workload(7, [5, 5]) < 2 * workload(7, [5])
